//! Bugs put in on purpose, to see that the simulator finds them.
//!
//! A check that has never been seen to fail proves nothing. Each [`Bug`] is one line of the protocol
//! left out, at the place where the real line stands. They exist only in builds with the feature
//! `planted-bugs`, which nothing but the simulator's own tests switches on; elsewhere [`is`] is
//! `false` for the compiler too, and the branches are gone.

/// One line of the protocol left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The node counts its lease from the answer instead of from the sending.
    LeaseFromReply,
    /// A late answer moves the node's deadline whatever is known, and the fencing time is left out.
    LeaseWithoutMargins,
    /// A node that lapsed goes on with everything at the next acknowledgement.
    ResumeWithoutConfirmation,
    /// The node's clock stands still while its machine is suspended.
    ClockStopsInSuspend,
    /// The watchdog does not end a frozen process that is to fence.
    NoWatchdog,
    /// The node obeys a term below the highest it has seen.
    ObeyLowerTerm,
    /// The node follows a second broker that claims the same term.
    FollowTwin,
    /// `activate` is obeyed whatever epoch it names.
    ActivateAnyEpoch,
    /// A command that comes late brings back a team that was taken away.
    ForgetWhatWasTaken,
    /// A ticket is good for whichever process has the node's name now.
    TicketOfEarlierProcess,
    /// An expired ticket is good while the broker is heard.
    ExpiredTicketWhileConnected,
    /// A lapsed node closes its connections although no peer hears the broker.
    CutOffUnasked,
    /// Every connection of a node that is cut off is closed at once.
    CutOffAtOnce,
    /// Commands go out before the writes they rest on are durable.
    CommandsBeforeWrites,
    /// Epochs are given out without being reserved in the store.
    EpochsNotReserved,
    /// The epoch of a move that was undone is given out again.
    EpochReusedAfterUndo,
    /// The broker goes on at its stored epochs although a node has seen higher ones.
    RegressedEpochsKept,
    /// A restarted broker declares deaths at once.
    NoRestartGrace,
    /// After a restart a team goes to its owner in full, whoever had it before.
    RestartForgetsWhoStops,
    /// A team that was deleted and made anew goes to its owner in full, whoever had it before.
    DeleteForgetsWhoStops,
    /// The broker's own pause does not count.
    OwnPauseIgnored,
    /// A shorter lease in the settings counts at once for nodes that hold a longer one.
    LoweredLeaseAtOnce,
    /// The new owner is activated without waiting for the old one.
    ActivateBeforeYield,
    /// A `yielded` of an earlier move activates the owner of a later one.
    StaleYieldCounts,
    /// A closed link and a refused probe count as proof that effects have stopped.
    HintIsProof,
    /// Half a lease of silence is death, and the dead have stopped.
    SilenceIsProof,
    /// `prepared` commits a move that was given up meanwhile.
    StalePlanApplied,
    /// Self-preservation never begins.
    NoSelfPreservation,
    /// Heartbeats are acknowledged before the inventory is reconciled.
    AckBeforeReconciliation,
    /// A prepared claim with a higher epoch beats the owner.
    PreparedBeatsOwned,
    /// Grants in an inventory are believed unseen.
    GrantsUnchecked,
    /// Drains move as fast as they can.
    DrainUnpaced,
    /// A drain charges each team the node's mean, whatever it has.
    DrainChargesMean,
    /// A drain goes on to the end although nobody arrives.
    DrainNeverWaits,
    /// A failover leaves out the teams that moved because their clients asked for them.
    KnocksLeftOut,
    /// A restarted broker forgets what its operations had moved.
    RestartForgetsMoves,
    /// A connection counts as gone and come when its report does, up to a tenth of a second later.
    GapsByReport,
    /// Clients that are closed together are told to come back together.
    SharedJitter,
    /// A route is published before the assignment behind it is durable.
    RouteBeforeWrite,
    /// A stopping node whose link closes is forgotten although it has not said that it stopped.
    EmptiedIsGone,
    /// A dead node is forgotten, and so counts as stopped, while its lease may run.
    ForgottenBeforeStopped,
    /// An owner that takes a team over from itself waits for itself to stop.
    WaitsForItself,
    /// The answer to a revoke of what was held does not count as having stopped.
    RevokedIsNotStopped,
    /// A claim of a higher epoch acts at once beside the owner that this run confirmed.
    AdoptedBesideOwner,
    /// A node that nobody gets to is as good as any.
    DistrustNeverBegins,
    /// That clients come back with tickets for a node that is heard says nothing.
    KnockAtReadyIgnored,
    /// A node that dies again and again is as good as any.
    CrashesForgotten,
    /// Self-preservation lasts as long as the silence.
    PreservationNeverEnds,
    /// A full node takes new teams.
    FullNodesChosen,
    /// A full node keeps its teams, and their clients are refused.
    FullNodeKeepsTeams,
    /// Connections are no part of how busy a node is.
    ConnectionsNotCounted,
    /// With an old store any claim is adopted under its own epoch, also one that was surpassed since.
    OldClaimAdopted,
    /// A second process of a name is taken as proof that the first is dead.
    NewIncarnationIsProof,
    /// The word of the process that has a name now counts for one that had it before.
    NamesakeAnswers,
    /// Whoever names an incarnation is believed to be that process, or its parent.
    IncarnationIsSecret,
    /// What a client was sent on counts as no hop of a chain.
    HopsUncounted,
    /// A client that comes back from where its route leads is sent there again.
    KnockNotHeard,
    /// `released` goes out before the departures that it follows.
    ReleasedBeforeReports,
    /// A process that is asked to stop closes everything at once.
    StopsBeforeDrained,
    /// A `resume` ticket is good although the broker is heard.
    ResumeWhileHeard,
}

impl Bug {
    /// Those that the simulator must find. The others are found by stories of `placement`, each in the file of its
    /// question: no seed comes to them in the time that a run of tests has.
    pub const ALL: [Self; 53] = [
        Self::LeaseFromReply,
        Self::LeaseWithoutMargins,
        Self::ResumeWithoutConfirmation,
        Self::ClockStopsInSuspend,
        Self::NoWatchdog,
        Self::ObeyLowerTerm,
        Self::FollowTwin,
        Self::ActivateAnyEpoch,
        Self::ForgetWhatWasTaken,
        Self::TicketOfEarlierProcess,
        Self::ExpiredTicketWhileConnected,
        Self::CutOffUnasked,
        Self::CutOffAtOnce,
        Self::CommandsBeforeWrites,
        Self::EpochsNotReserved,
        Self::EpochReusedAfterUndo,
        Self::RegressedEpochsKept,
        Self::NoRestartGrace,
        Self::RestartForgetsWhoStops,
        Self::DeleteForgetsWhoStops,
        Self::OwnPauseIgnored,
        Self::LoweredLeaseAtOnce,
        Self::ActivateBeforeYield,
        Self::StaleYieldCounts,
        Self::HintIsProof,
        Self::SilenceIsProof,
        Self::StalePlanApplied,
        Self::NoSelfPreservation,
        Self::AckBeforeReconciliation,
        Self::PreparedBeatsOwned,
        Self::GrantsUnchecked,
        Self::DrainUnpaced,
        Self::SharedJitter,
        Self::RouteBeforeWrite,
        Self::EmptiedIsGone,
        Self::ForgottenBeforeStopped,
        Self::WaitsForItself,
        Self::RevokedIsNotStopped,
        Self::AdoptedBesideOwner,
        Self::KnockAtReadyIgnored,
        Self::CrashesForgotten,
        Self::PreservationNeverEnds,
        Self::FullNodesChosen,
        Self::FullNodeKeepsTeams,
        Self::ConnectionsNotCounted,
        Self::OldClaimAdopted,
        Self::NewIncarnationIsProof,
        Self::IncarnationIsSecret,
        Self::HopsUncounted,
        Self::KnockNotHeard,
        Self::ReleasedBeforeReports,
        Self::StopsBeforeDrained,
        Self::ResumeWhileHeard,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Puts one bug into every decision that this thread makes from now on, or takes it out again.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.with(|planted| planted.set(bug));
}

/// Whether this thread's decisions have this bug.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is(bug: Bug) -> bool {
    PLANTED.with(|planted| planted.get() == Some(bug))
}

/// Never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
