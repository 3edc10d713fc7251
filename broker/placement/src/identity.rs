//! Who speaks under a name, and what became of whoever had it before?
//!
//! A name is one process's at a time, and a second process that shows it proves nothing about the
//! first: a machine was cloned, a pod was deleted by force and lives on, somebody typed a name twice.
//! Proof that a process has ended comes from its own machine alone: its parent says so and shows the
//! nonce, or its successor holds the lock that it held. Otherwise the one before is *displaced*: its
//! teams are served by others at once, and exclusive effects wait for the end of its lease.
//!
//! What a live link contradicts is not believed, whoever says it.

use usher_shared::id::{Incarnation, NodeId};
use usher_shared::identity::Marks;
use usher_shared::lease;
use usher_shared::link::{Exited, Hello, RefusedCode};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::RivalView;

use crate::core::Core;
use crate::node::Node;
use crate::notice::{Disbelief, Evidence, Notice};

/// Processes of one name that were displaced and may act still. More than these within one lease are no
/// restarts, and each is waited for.
const FORMER_MAX: usize = 8;

/// How long a refused rival is shown.
const RIVAL_SHOWN_MS: u64 = 60_000;

/// A process whose name another one has, and whose end is not proven.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    /// When it was last heard: its lease may run on from there.
    pub(crate) heard: Timestamp,
    /// The longest lease it may hold.
    pub(crate) lease_ms: u64,
    pub(crate) marks: Marks,
}

/// Another process that wanted this node's name and did not get it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rival {
    /// How often it, or they, were refused since the name has its process.
    pub(crate) refused: u64,
    /// When that was last.
    pub(crate) last: Timestamp,
}

/// The word of a parent whose child's link is open and heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitWord {
    /// There is none.
    None,
    /// It came then, and waits for the link to close.
    Waits(Timestamp),
}

impl Core {
    /// Why a hello may not have the name that it claims, if so.
    pub(crate) fn refuse_identity(&self, hello: &Hello, now: Timestamp) -> Option<(RefusedCode, String)> {
        let node = self.nodes.get(&hello.node)?;
        let name = &hello.node;
        let former = self.former.get(&(name.clone(), hello.incarnation));
        let marks = if node.incarnation() == hello.incarnation {
            Some(&node.marks)
        } else {
            former.map(|former| &former.marks)
        };
        if marks.is_some_and(|marks| !marks.is_itself(hello.nonce)) && !planted::is(Bug::IncarnationIsSecret)
        {
            let detail = format!(
                "this process of {name} is known by its nonce, and the hello does not show it: whoever sent it is \
                 another process; give it an incarnation and a nonce of its own"
            );
            return Some((RefusedCode::Unproven, detail));
        }
        if node.incarnation() == hello.incarnation {
            return None;
        }
        // Were the newcomer let in, the two would throw each other out for ever; a restarted node's old
        // link closes with its process, or goes silent.
        if node.link().is_some() && now.since(node.heard()) <= 2 * self.settings.heartbeat_ms {
            let detail = format!("a live node is called {name}; stop it, or give this one another --name");
            return Some((RefusedCode::NameTaken, detail));
        }
        // Both live, so this is no restart: a short silence must not hand the teams back and forth.
        if node.displaced.contains(&hello.incarnation) && !node.is_dead() {
            let detail = format!(
                "another process took the name {name} over while this one was not heard, and lives; stop one of the \
                 two, or give this one another --name"
            );
            return Some((RefusedCode::NameTaken, detail));
        }
        let former = self.former_of(name);
        if former >= FORMER_MAX && !self.ends(node, hello) {
            let detail = format!(
                "{former} processes had the name {name} within one lease, and none is known to have ended; stop all \
                 but one"
            );
            return Some((RefusedCode::NameTaken, detail));
        }
        None
    }

    /// Whether a hello proves that the process which has its name has ended.
    fn ends(&self, node: &Node, hello: &Hello) -> bool {
        node.marks.is_succeeded_by(hello.lock) || planted::is(Bug::NewIncarnationIsProof)
    }

    /// Another process gets the name of the one that had it.
    pub(crate) fn succeed(&mut self, hello: &Hello, now: Timestamp) {
        let id = &hello.node;
        let Some(node) = self.nodes.get(id) else { return };
        let (before, heard, lease_ms, marks) = (node.incarnation(), node.heard(), node.lease_ms, node.marks);
        if self.ends(node, hello) {
            return self.node_died(id, Evidence::Successor, now);
        }
        if !self.is_fenced(id, before, now) {
            let former = Former {
                heard,
                lease_ms,
                marks,
            };
            self.former.insert((id.clone(), before), former);
        }
        self.node_died(id, Evidence::Displaced, now);
        if let Some(node) = self.nodes.get_mut(id) {
            node.displaced.retain(|known| *known != before);
            if node.displaced.len() == FORMER_MAX {
                node.displaced.remove(0);
            }
            node.displaced.push(before);
        }
    }

    /// Whether nobody of that name can hold a lease but the process that says this hello, which is new.
    pub(crate) fn is_alone(&self, hello: &Hello) -> bool {
        let node = self.nodes.get(&hello.node);
        let dead = node.is_none_or(|node| node.is_proven_dead() && node.incarnation() != hello.incarnation);
        dead && self.former_of(&hello.node) == 0
    }

    /// What the process of this hello is to be known by, now that it is let in.
    pub(crate) fn recognise(&mut self, hello: &Hello) -> Marks {
        // It is the one that has the name again.
        self.former.remove(&(hello.node.clone(), hello.incarnation));
        let marks = Marks {
            nonce: hello.nonce.map(|nonce| nonce.mark()),
            lock: hello.lock.map(|lock| lock.mark()),
        };
        let Some(node) = self.nodes.get_mut(&hello.node) else {
            return marks;
        };
        if node.incarnation() != hello.incarnation {
            node.marks = marks;
            node.rival = None;
        }
        node.displaced.retain(|known| *known != hello.incarnation);
        node.exit_word = ExitWord::None;
        marks
    }

    /// A hello for this name was refused because another process has it.
    pub(crate) fn note_rival(&mut self, id: &NodeId, now: Timestamp) {
        if let Some(node) = self.nodes.get_mut(id) {
            let refused = node.rival.map_or(0, |rival| rival.refused);
            node.rival = Some(Rival {
                refused: refused.saturating_add(1),
                last: now,
            });
        }
    }

    /// Whether the word that a process has ended shows what its parent knows. One of an unknown process
    /// says nothing, and is as good.
    #[must_use]
    pub fn is_shown(&self, exited: &Exited) -> bool {
        let former = self.former.get(&(exited.node.clone(), exited.incarnation));
        let marks = self
            .nodes
            .get(&exited.node)
            .filter(|node| node.incarnation() == exited.incarnation)
            .map(|node| &node.marks)
            .or(former.map(|former| &former.marks));
        marks.is_none_or(|marks| marks.is_itself(exited.nonce)) || planted::is(Bug::IncarnationIsSecret)
    }

    /// Somebody says that a process has ended.
    pub(crate) fn exited(&mut self, exited: &Exited, now: Timestamp) {
        let id = &exited.node;
        if !self.is_shown(exited) {
            return self.notice(Notice::ExitDisbelieved {
                node: id.clone(),
                why: Disbelief::NoNonce,
            });
        }
        if self.former.remove(&(id.clone(), exited.incarnation)).is_some() {
            return self.activate_after_leases(now);
        }
        let patience = 2 * self.settings.heartbeat_ms;
        let Some(node) = self
            .nodes
            .get_mut(id)
            .filter(|node| node.incarnation() == exited.incarnation)
        else {
            return;
        };
        let contradicted = node.link().is_some() && now.since(node.heard()) <= patience;
        if contradicted {
            // The kernel closes the link with the process: its end is on its way here, or never comes.
            node.exit_word = ExitWord::Waits(now);
            return;
        }
        self.node_died(id, Evidence::Exit, now);
    }

    /// The link of a process closed, or went silent: whether its parent has said why.
    pub(crate) fn exit_is_confirmed(&mut self, id: &NodeId, now: Timestamp) -> bool {
        let Some(node) = self.nodes.get_mut(id) else {
            return false;
        };
        let told = std::mem::replace(&mut node.exit_word, ExitWord::None) != ExitWord::None;
        if told {
            self.node_died(id, Evidence::Exit, now);
        }
        told
    }

    /// A heartbeat came from a process whose end was reported. One that was on its way then says nothing;
    /// a later one says that the report is false, and the next break of the link must not make it true.
    pub(crate) fn doubt_exit(&mut self, id: &NodeId, now: Timestamp) {
        let patience = 2 * self.settings.heartbeat_ms;
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        if let ExitWord::Waits(since) = node.exit_word
            && now.since(since) > patience
        {
            node.exit_word = ExitWord::None;
            self.notice(Notice::ExitDisbelieved {
                node: id.clone(),
                why: Disbelief::Heard,
            });
        }
    }

    /// How many processes that had a name may act still.
    pub(crate) fn former_of(&self, id: &NodeId) -> usize {
        let from = (id.clone(), Incarnation::from_bits(0));
        let to = (id.clone(), Incarnation::from_bits(u128::MAX));
        self.former.range(from..=to).count()
    }

    /// Whether a process that has not its name any more may act still.
    pub(crate) fn former_may_act(&self, id: &NodeId, incarnation: Incarnation, now: Timestamp) -> bool {
        self.former
            .get(&(id.clone(), incarnation))
            .is_some_and(|former| now.since(former.heard) < lease::dead_after_ms(former.lease_ms))
    }

    /// Forgets the processes whose lease is over.
    pub(crate) fn forget_former(&mut self, now: Timestamp) {
        let mut former = std::mem::take(&mut self.former);
        former.retain(|_, former| now.since(former.heard) < lease::dead_after_ms(former.lease_ms));
        self.former = former;
    }
}

impl Node {
    /// Who else wants its name just now.
    pub(crate) fn rival_view(&self, now: Timestamp) -> Option<RivalView> {
        let rival = self.rival?;
        let age_ms = now.since(rival.last);
        (age_ms < RIVAL_SHOWN_MS).then_some(RivalView {
            refused: rival.refused,
            age_ms,
        })
    }
}
