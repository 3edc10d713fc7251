//! One client for as long as it lives: connect, hold, move without a gap, come back after a loss.

use futures_util::{SinkExt as _, StreamExt as _};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as WireCode;
use tokio_util::sync::CancellationToken;
use usher_shared::frame::{Control, pretends_control};
use usher_shared::id::{NodeId, TeamId};

use super::decide::{Backoff, Ending, Next, after};
use super::dial::{Failed, Live, Options, Socket, ending_of, open};
use super::resolve::{Knock, ticket, with_ticket};
use super::silence::{Due, Silence};

/// A frame that cannot be handed to the kernel for this long means a dead connection.
const SEND: Duration = Duration::from_secs(10);
/// How long a closing connection is read on.
const LINGER: Duration = Duration::from_secs(5);

/// What a session tells its application.
pub(crate) enum Event<'a> {
    /// There is a connection.
    Connected {
        node: Option<&'a NodeId>,
        took: Duration,
        how: How,
    },
    /// A text frame of the application.
    Text(&'a str),
    /// A binary frame of the application.
    Binary(&'a [u8]),
    /// A control frame.
    Control(&'a Control),
    /// The connection is gone.
    Lost(&'a Ending),
    /// There is still no connection.
    Failed(&'a Ending),
    /// The next attempt comes after this long.
    Waiting(Duration),
}

/// How a connection came about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    /// The first one.
    First,
    /// After a loss, and this long without any.
    Back(Duration),
    /// Beside the old one, which is closed now.
    Moved,
}

/// What runs on a session.
pub(crate) trait Application: Send {
    /// Something happened.
    fn on(&mut self, event: Event<'_>);

    /// The next text to send; `None` ends the session. Asked only while there is a connection, and
    /// dropped and asked again at will.
    fn outgoing(&mut self) -> impl Future<Output = Option<String>> + Send;
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The application has nothing more to send.
    Finished,
    /// It was told to stop.
    Stopped,
    /// Coming back would not help.
    GaveUp(Ending),
}

/// One client of one team.
pub(crate) struct Session<A> {
    options: Arc<Options>,
    team: TeamId,
    application: A,
    stop: CancellationToken,
}

type Opening = Pin<Box<dyn Future<Output = Result<Live, Failed>> + Send>>;

/// Where a client stands with a move it was told to make.
enum Moving {
    No,
    /// It opens the new connection at its slot.
    Slot {
        at: Instant,
        by: Instant,
        url: String,
    },
    /// It is opening it.
    Opening {
        by: Instant,
        url: String,
        opening: Opening,
    },
}

impl Moving {
    /// The new connection that is being opened already, if one is.
    fn under_way(self) -> Option<Opening> {
        match self {
            Self::Opening { opening, .. } => Some(opening),
            Self::No | Self::Slot { .. } => None,
        }
    }
}

/// How holding a connection ended.
enum Held {
    Over(End),
    /// Lost, perhaps with a new connection being opened already.
    Lost(Ending, Option<Opening>),
}

impl<A: Application> Session<A> {
    pub(crate) fn new(options: Arc<Options>, team: TeamId, application: A, stop: CancellationToken) -> Self {
        Self {
            options,
            team,
            application,
            stop,
        }
    }

    /// Runs until the application is done, `stop` is set, or coming back would not help.
    pub(crate) async fn run(mut self) -> End {
        let mut backoff = Backoff::default();
        let mut knock = Knock::default();
        let mut under_way: Option<Opening> = None;
        let mut resume: Option<String> = None;
        let mut lost_at: Option<Instant> = None;
        let mut how = How::First;
        let stop = self.stop.clone();
        loop {
            let began = Instant::now();
            let opening = under_way.take().unwrap_or_else(|| self.opening(knock.clone()));
            let opened = tokio::select! {
                opened = opening => opened,
                () = stop.cancelled() => return End::Stopped,
            };
            let ending = match opened {
                Ok(mut live) => {
                    if let Some(lost_at) = lost_at {
                        how = How::Back(lost_at.elapsed());
                    }
                    self.connected(&live, began.elapsed(), how);
                    backoff.connected();
                    let since = Instant::now();
                    let (ending, opening) = match self.hold(&mut live).await {
                        Held::Over(end) => return end,
                        Held::Lost(ending, opening) => (ending, opening),
                    };
                    self.application.on(Event::Lost(&ending));
                    lost_at = Some(Instant::now());
                    backoff.lived(since.elapsed());
                    // No broker can read a node's own ticket.
                    let resumed = resume.as_ref() == Some(&live.url);
                    knock = Knock {
                        url: None,
                        ticket: ticket(&live.url).filter(|_| !resumed),
                        from: live.connection,
                    };
                    let url = &live.url;
                    resume = live.resume.as_ref().map(|ticket| with_ticket(url, ticket));
                    dismiss(live.socket);
                    if opening.is_some() {
                        under_way = opening;
                        continue;
                    }
                    ending
                }
                Err(failed) => {
                    self.application.on(Event::Failed(&failed.ending));
                    let no_broker = failed.ticket.is_none() && matches!(failed.ending, Ending::Cut(_));
                    if no_broker
                        && knock.url.is_none()
                        && let Some(url) = &resume
                    {
                        // The broker is away, perhaps for longer: the node it was on may still be there.
                        knock.url = Some(url.clone());
                        continue;
                    }
                    let resumed = resume.is_some() && knock.url == resume;
                    knock.url = None;
                    // A broker that refused has seen the old ticket; showing it again would only count
                    // the same hop twice.
                    let refused = matches!(failed.ending, Ending::Refused(_));
                    knock.ticket = if refused {
                        None
                    } else if resumed {
                        // No broker can read a node's own ticket.
                        knock.ticket
                    } else {
                        failed.ticket.or(knock.ticket)
                    };
                    failed.ending
                }
            };
            let not_before = match after(&ending) {
                Next::End => return End::GaveUp(ending),
                Next::Follow { url } if backoff.may_follow() => {
                    knock.url = Some(url);
                    continue;
                }
                Next::Follow { .. } => None,
                Next::ComeBack { not_before } => not_before,
            };
            let wait = backoff.wait(not_before, rand::random());
            self.application.on(Event::Waiting(wait));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return End::Stopped,
            }
        }
    }

    fn opening(&self, knock: Knock) -> Opening {
        Box::pin(open(Arc::clone(&self.options), self.team.clone(), knock))
    }

    fn connected(&mut self, live: &Live, took: Duration, how: How) {
        self.application.on(Event::Connected {
            node: live.node.as_ref(),
            took,
            how,
        });
    }

    /// Serves one connection, and the one it moves to, until it is lost.
    async fn hold(&mut self, live: &mut Live) -> Held {
        let stop = self.stop.clone();
        let mut moving = Moving::No;
        let mut old: Option<(Socket, Instant)> = None;
        let mut sent_on: Option<String> = None;
        let mut silence = Silence::new(live.ping, Instant::now());
        // Armed anew when it fires, not for each frame.
        let mut look = pin!(sleep_until(silence.look_at()));
        let mut early = std::mem::take(&mut live.early).into_iter();
        loop {
            if let Some(message) = early.next() {
                if let Some(ending) = self.take(message, &mut moving, &mut sent_on) {
                    return Held::Lost(ending, None);
                }
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => {
                    farewell(&mut live.socket).await;
                    return Held::Over(End::Stopped);
                }
                frame = live.socket.next() => {
                    silence.heard(Instant::now());
                    let ending = match frame {
                        Some(Ok(message)) => self.take(message, &mut moving, &mut sent_on),
                        Some(Err(error)) => Some(ending_of(&error)),
                        None => Some(Ending::Cut("connection ended".to_owned())),
                    };
                    if let Some(ending) = ending {
                        return Held::Lost(ending, moving.under_way());
                    }
                }
                frame = read_old(&mut old) => match frame {
                    Some(message) => {
                        // The old connection's last words belong to the application, nothing else does.
                        let mut ignored = Moving::No;
                        let _ = self.take(message, &mut ignored, &mut sent_on);
                        sent_on = None;
                    }
                    None => old = None,
                },
                text = self.application.outgoing() => {
                    let Some(text) = text else {
                        farewell(&mut live.socket).await;
                        return Held::Over(End::Finished);
                    };
                    match timeout(SEND, live.socket.send(Message::text(text))).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return Held::Lost(ending_of(&error), moving.under_way()),
                        Err(_) => return Held::Lost(Ending::Cut("sending took too long".to_owned()), moving.under_way()),
                    }
                }
                turn = turn(&mut moving) => match turn {
                    Turn::Slot => {
                        if let Moving::Slot { by, url, .. } = std::mem::replace(&mut moving, Moving::No) {
                            let opening = self.opening(Knock { url: Some(url.clone()), ..Knock::default() });
                            moving = Moving::Opening { by, url, opening };
                        }
                    }
                    Turn::Opened(opened) => {
                        moving = match (*opened, std::mem::replace(&mut moving, Moving::No)) {
                            (Ok(new), _) => {
                                let mut before = std::mem::replace(live, new);
                                early = std::mem::take(&mut live.early).into_iter();
                                self.connected(live, Duration::ZERO, How::Moved);
                                say_close(&mut before.socket).await;
                                old = Some((before.socket, Instant::now() + LINGER));
                                silence = Silence::new(live.ping, Instant::now());
                                look.as_mut().reset(silence.look_at());
                                Moving::No
                            }
                            (Err(failed), Moving::Opening { by, url, .. }) => {
                                self.application.on(Event::Failed(&failed.ending));
                                let at = Instant::now() + Duration::from_millis(500).mul_f64(0.5 + rand::random::<f64>());
                                if at < by { Moving::Slot { at, by, url } } else { Moving::No }
                            }
                            (Err(_), other) => other,
                        };
                    }
                },
                () = &mut look => {
                    let gone = match silence.due(Instant::now()) {
                        Due::Nothing => false,
                        Due::GiveUp => true,
                        Due::Ask => {
                            let ping = live.socket.send(Message::Ping(Vec::new().into()));
                            !matches!(timeout(SEND, ping).await, Ok(Ok(())))
                        }
                    };
                    if gone {
                        return Held::Lost(Ending::Cut("nothing heard for too long".to_owned()), moving.under_way());
                    }
                    look.as_mut().reset(silence.look_at());
                }
            }
        }
    }

    /// One message. Returns how the connection ended, if it did.
    fn take(
        &mut self,
        message: Message,
        moving: &mut Moving,
        sent_on: &mut Option<String>,
    ) -> Option<Ending> {
        match message {
            Message::Text(text) if pretends_control(&text) => {
                let Ok(control) = serde_json::from_str::<Control>(&text) else {
                    // A control frame of a later version.
                    return None;
                };
                match &control {
                    Control::Move {
                        url, after_ms, by_ms, ..
                    } if matches!(moving, Moving::No) => {
                        let now = Instant::now();
                        *moving = Moving::Slot {
                            at: now + Duration::from_millis(*after_ms),
                            by: now + Duration::from_millis(*by_ms),
                            url: url.clone(),
                        };
                    }
                    Control::Redirect { url } => *sent_on = Some(url.clone()),
                    Control::Move { .. }
                    | Control::Welcome { .. }
                    | Control::Error { .. }
                    | Control::Pong { .. } => {}
                }
                self.application.on(Event::Control(&control));
                None
            }
            Message::Text(text) => {
                self.application.on(Event::Text(&text));
                None
            }
            Message::Binary(bytes) => {
                self.application.on(Event::Binary(&bytes));
                None
            }
            Message::Close(frame) => Some(match (sent_on.take(), frame) {
                (Some(url), _) => Ending::SentOn { url },
                (None, Some(frame)) => Ending::Closed {
                    code: frame.code.into(),
                    reason: frame.reason.to_string(),
                },
                // RFC 6455 section 7.1.5: 1005 stands for a close without a code.
                (None, None) => Ending::Closed {
                    code: 1005,
                    reason: String::new(),
                },
            }),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => None,
        }
    }
}

/// What became due in a move.
enum Turn {
    Slot,
    Opened(Box<Result<Live, Failed>>),
}

async fn turn(moving: &mut Moving) -> Turn {
    match moving {
        Moving::No => std::future::pending().await,
        Moving::Slot { at, .. } => {
            sleep_until(*at).await;
            Turn::Slot
        }
        Moving::Opening { opening, .. } => Turn::Opened(Box::new(opening.await)),
    }
}

/// The next message of a connection that was left, until it is closed or has lingered enough.
async fn read_old(old: &mut Option<(Socket, Instant)>) -> Option<Message> {
    let Some((socket, until)) = old else {
        return std::future::pending().await;
    };
    match tokio::time::timeout_at(*until, socket.next()).await {
        Ok(Some(Ok(Message::Close(_)))) | Ok(Some(Err(_)) | None) | Err(_) => None,
        Ok(Some(Ok(message))) => Some(message),
    }
}

async fn say_close(socket: &mut Socket) {
    let close = CloseFrame {
        code: WireCode::Normal,
        reason: "".into(),
    };
    let _ = timeout(Duration::from_secs(1), socket.send(Message::Close(Some(close)))).await;
}

/// Closes, and waits a little for the answer, so that the node sees a close and not a loss.
async fn farewell(socket: &mut Socket) {
    say_close(socket).await;
    let _ = timeout(Duration::from_secs(1), async {
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
}

/// Lets the answer to a received Close go out, aside.
fn dismiss(mut socket: Socket) {
    tokio::spawn(async move {
        let _ = timeout(LINGER, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    });
}
