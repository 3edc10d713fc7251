//! What the loop writes to: the links that have said hello.

use std::collections::HashMap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use usher_placement::LinkId;
use usher_shared::id::NodeId;
use usher_shared::link::{Refused, ToNode};

/// Messages that may wait for one node. A failover in a large pool gives one node a few hundred
/// thousand teams at once; a node that is further behind than this is cut off and starts anew.
const QUEUE: usize = 1 << 20;

/// What the writer of a link takes.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// The next message.
    Message(Box<ToNode>),
    /// The last one; then the link is closed.
    Last(Refused),
}

/// The loop's end of one link.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    queue: mpsc::Sender<Outgoing>,
    cut: CancellationToken,
}

/// The writer's end of one link.
pub(crate) type OutgoingQueue = mpsc::Receiver<Outgoing>;

impl Outlet {
    /// A queue for one link; `cut` ends the link.
    pub(crate) fn new(cut: CancellationToken) -> (Self, OutgoingQueue) {
        let (queue, outgoing) = mpsc::channel(QUEUE);
        (Self { queue, cut }, outgoing)
    }

    /// Sends the last message of the link.
    pub(crate) fn close(&self, refused: Refused) {
        self.put(Outgoing::Last(refused));
    }

    fn put(&self, outgoing: Outgoing) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(outgoing) {
            tracing::warn!("a node does not keep up with its messages; its link is cut");
            self.cut.cancel();
        }
    }
}

/// The links that have said hello, with the node that each belongs to.
#[derive(Debug, Default)]
pub(crate) struct Outlets {
    links: HashMap<LinkId, (NodeId, Outlet)>,
}

impl Outlets {
    pub(crate) fn open(&mut self, link: LinkId, node: NodeId, outlet: Outlet) {
        self.links.insert(link, (node, outlet));
    }

    pub(crate) fn node(&self, link: LinkId) -> Option<&NodeId> {
        self.links.get(&link).map(|(node, _)| node)
    }

    /// Sends, unless the link is gone: the core sends everything again until it is answered.
    pub(crate) fn send(&self, link: LinkId, message: Box<ToNode>) {
        if let Some((_, outlet)) = self.links.get(&link) {
            outlet.put(Outgoing::Message(message));
        }
    }

    /// Sends the last message of a link.
    pub(crate) fn close(&self, link: LinkId, refused: Refused) {
        if let Some((_, outlet)) = self.links.get(&link) {
            outlet.close(refused);
        }
    }

    pub(crate) fn forget(&mut self, link: LinkId) {
        self.links.remove(&link);
    }
}
