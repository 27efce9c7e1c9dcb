//! Requests of members: what each may have waiting, and of control one piece of work at a time for each.
//!
//! The connection that carries a message pays for it before it is looked at: for its place and its bytes here, then for
//! each record that has to be checked, and dearly for each that is forged, because an honest member passes on only what
//! it has checked itself. Who has used up its share waits, and who does not wait is refused; neither delays anybody else.
//! A large push is taken in pieces, so that a head or a question sent after it is not behind all of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::records::take::{FORGED_COST, Pushes};
use super::{Mesh, join, relay, sessions};
use crate::limit::{Buckets, Limit};
use crate::link::direct::SessionMessage;
use crate::model::id::{PeerId, SubnetId};
use crate::model::source::Payer;
use crate::node::difference;
use crate::p2p::{Protocol, Responder};
use crate::wire::control::{self, ControlAnswer, ControlRequest};

/// Requests of one member that wait or are being answered.
const REQUESTS: usize = 64;
/// Bytes of those requests together, unless a single one is larger.
const BYTES: usize = 2 * 1024 * 1024;
/// Bytes of all members' requests together, unless a member has no other.
const ALL_BYTES: usize = 32 * 1024 * 1024;
/// Control requests that one member may send at once, and a second after that. A comparison takes three.
const REQUESTS_LIMIT: Limit = Limit::new(200, 20);
/// Records that one member may have checked at once, and a second after that: everything a large subnet holds, then ten
/// times what its members say when each says something every ten seconds.
const RECORDS_LIMIT: Limit = Limit::new(16_384, 1_024);
/// Time for which a refused request is left without an answer: who sends without end is slowed by its own limit on
/// requests under way.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// How many members' shares are remembered.
const MEMBERS: usize = 4096;
/// Size in bytes from which on a message is decoded off the asynchronous threads.
const LARGE: usize = 16 * 1024;

struct Request {
    body: Vec<u8>,
    responder: Responder,
    place: Place,
}

/// The requests that one member has waiting, and what they take.
#[derive(Default)]
struct Share {
    waiting: VecDeque<Request>,
    /// How many are being answered.
    requests: usize,
    bytes: usize,
    /// Whether a task answers this member's requests.
    served: bool,
    came: Arc<Notify>,
}

struct Inner {
    shares: BTreeMap<PeerId, Share>,
    bytes: usize,
    requests: Buckets<PeerId>,
    records: Buckets<PeerId>,
}

/// The requests that all members have waiting. Clones are cheap, and one inbox.
#[derive(Clone)]
pub(crate) struct Inbox(Arc<Mutex<Inner>>);

/// Room that a request takes until it is answered.
pub(super) struct Place {
    inbox: Inbox,
    peer: PeerId,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.inbox.lock();
        inner.bytes = inner.bytes.saturating_sub(self.bytes);
        if let Some(share) = inner.shares.get_mut(&self.peer) {
            share.requests = share.requests.saturating_sub(1);
            share.bytes = share.bytes.saturating_sub(self.bytes);
            if share.requests == 0 && !share.served {
                inner.shares.remove(&self.peer);
            }
        }
    }
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox(Arc::new(Mutex::new(Inner {
            shares: BTreeMap::new(),
            bytes: 0,
            requests: Buckets::new(REQUESTS_LIMIT, MEMBERS),
            records: Buckets::new(RECORDS_LIMIT, MEMBERS),
        })))
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// Lets a request of `peer` wait. Gives whether a task has to be started for them.
    ///
    /// # Errors
    /// The responder back, and why there is no room.
    fn enter(
        &self,
        peer: PeerId,
        body: Vec<u8>,
        responder: Responder,
    ) -> Result<bool, (Responder, &'static str)> {
        let mut inner = self.lock();
        if !inner.requests.take(peer, 1, Instant::now().into_std()) {
            return Err((responder, "too many control requests from a member"));
        }
        let Some(place) = self.place(&mut inner, peer, body.len()) else {
            return Err((responder, "a member has too many control requests waiting"));
        };
        let share = inner.shares.entry(peer).or_default();
        share.waiting.push_back(Request {
            body,
            responder,
            place,
        });
        let start = !std::mem::replace(&mut share.served, true);
        share.came.notify_one();
        Ok(start)
    }

    /// Room for a request of `peer` beside all that it has waiting, of whatever protocol.
    fn place(&self, inner: &mut Inner, peer: PeerId, bytes: usize) -> Option<Place> {
        let all = inner.bytes.saturating_add(bytes);
        let held = inner
            .shares
            .get(&peer)
            .map_or((0, 0), |share| (share.requests, share.bytes));
        let full = held.1.saturating_add(bytes) > BYTES || all > ALL_BYTES;
        if held.0 >= REQUESTS || (full && held.0 > 0) {
            return None;
        }
        let share = inner.shares.entry(peer).or_default();
        share.requests = share.requests.saturating_add(1);
        share.bytes = share.bytes.saturating_add(bytes);
        inner.bytes = all;
        Some(Place {
            inbox: self.clone(),
            peer,
            bytes,
        })
    }

    fn next(&self, peer: PeerId) -> Option<Request> {
        self.lock().shares.get_mut(&peer)?.waiting.pop_front()
    }

    /// Charges a member for records. Gives how long it has to wait for what it took beyond its share.
    pub(super) fn charge(&self, peer: PeerId, records: u64) -> Duration {
        self.lock()
            .records
            .owe(peer, records, Instant::now().into_std())
    }
}

/// The task that answers a member's requests; marks, when it ends in any way, that there is none.
struct Serving {
    inbox: Inbox,
    peer: PeerId,
    came: Arc<Notify>,
    ended: bool,
}

impl Serving {
    /// Ends, unless something has come meanwhile.
    fn end(&mut self) -> bool {
        let mut inner = self.inbox.lock();
        let Some(share) = inner.shares.get_mut(&self.peer) else {
            return true;
        };
        if !share.waiting.is_empty() {
            return false;
        }
        share.served = false;
        if share.requests == 0 {
            inner.shares.remove(&self.peer);
        }
        self.ended = true;
        true
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // A request that ended the task must not end it again.
        let mut inner = self.inbox.lock();
        let left = inner.shares.get_mut(&self.peer).map(|share| {
            share.served = false;
            std::mem::take(&mut share.waiting)
        });
        drop(inner);
        drop(left);
    }
}

/// A request that a member has sent. It is answered when its turn comes, or refused where too much waits.
pub(crate) fn arrived(mesh: &Arc<Mesh>, peer: PeerId, body: Vec<u8>, responder: Responder) {
    match mesh.inbox.enter(peer, body, responder) {
        Ok(true) => mesh.spawn(serve(Arc::clone(mesh), peer)),
        Ok(false) => {}
        Err((responder, why)) => {
            mesh.table.refuse(peer, Protocol::Control, why);
            mesh.spawn(async move {
                tokio::time::sleep(REFUSED_FOR).await;
                drop(responder);
            });
        }
    }
}

/// A request of the service protocol. It takes its place among what its sender has waiting here until it is answered; what
/// it costs beside that, and whether it is run, the service decides.
pub(crate) fn service_arrived(mesh: &Arc<Mesh>, peer: PeerId, body: Vec<u8>, responder: Responder) {
    let place = mesh.inbox.place(&mut mesh.inbox.lock(), peer, body.len());
    let has_room = place.is_some();
    let respond = Box::new(move |answer| {
        responder.respond(answer);
        drop(place);
    });
    let taken = if has_room {
        mesh.service.arrived(peer, body, respond)
    } else {
        mesh.service.crowded(peer, body, respond)
    };
    if let Err(why) = taken {
        mesh.table.refuse(peer, Protocol::Service, why);
    }
}

async fn serve(mesh: Arc<Mesh>, peer: PeerId) {
    let came = mesh
        .inbox
        .lock()
        .shares
        .entry(peer)
        .or_default()
        .came
        .clone();
    let mut serving = Serving {
        inbox: mesh.inbox.clone(),
        peer,
        came,
        ended: false,
    };
    let mut pushes = Pushes::default();
    loop {
        while let Some(request) = mesh.inbox.next(peer) {
            open(&mesh, peer, request, &mut pushes).await;
        }
        if pushes.is_empty() {
            if serving.end() {
                return;
            }
        } else if pushes.take_piece(&mesh, peer, &serving.came).await.is_err() {
            // The node is stopping.
            return;
        }
    }
}

/// Answers a request at once, or makes a push of it.
async fn open(mesh: &Arc<Mesh>, peer: PeerId, request: Request, pushes: &mut Pushes) {
    let Request {
        body,
        responder,
        place,
    } = request;
    let answer = match decoded(mesh, body).await {
        Err(_) => {
            mesh.inbox.charge(peer, FORGED_COST);
            return mesh
                .table
                .refuse(peer, Protocol::Control, "a malformed request");
        }
        Ok(ControlRequest::Push { subnet, .. }) if !is_member(mesh, subnet, peer) => {
            ControlAnswer::NotMember
        }
        Ok(ControlRequest::Push { subnet, records }) => {
            return pushes.add(subnet, records, responder, place);
        }
        Ok(ControlRequest::Session {
            subnet,
            message,
            endpoints,
        }) => {
            let message = SessionMessage { message, endpoints };
            let shared = Arc::clone(mesh);
            return mesh.spawn(async move {
                let answer = sessions::answer(&shared, peer, subnet, message).await;
                responder.respond(control::encode(&answer));
                drop(place);
            });
        }
        Ok(ControlRequest::Paths(said)) => {
            let shared = Arc::clone(mesh);
            return mesh.spawn(async move {
                let answer = sessions::told(&shared, peer, said).await;
                responder.respond(control::encode(&answer));
                drop(place);
            });
        }
        Ok(ControlRequest::CallVia {
            relay,
            addresses,
            ticket,
        }) => {
            let shared = Arc::clone(mesh);
            return mesh.spawn(async move {
                let answer = relay::called(&shared, peer, (relay, addresses, ticket)).await;
                responder.respond(control::encode(&answer));
                drop(place);
            });
        }
        Ok(ControlRequest::Forward(request)) => {
            join::decide(mesh, peer, Payer::Member(peer), request, true)
                .await
                .map_or(ControlAnswer::NotMember, ControlAnswer::Forwarded)
        }
        Ok(ControlRequest::Compare { subnet, hash }) => {
            let Ok(answer) = mesh.node.answer_compare(peer, subnet, hash).await else {
                return;
            };
            if answer == ControlAnswer::Same {
                let now = Instant::now().into_std();
                mesh.spread.lock().agreed(peer, subnet, hash, now);
            }
            answer
        }
        Ok(ControlRequest::Pull { subnet, have }) => {
            let Some(answer) = pulled(mesh, peer, subnet, have).await else {
                return;
            };
            answer
        }
    };
    responder.respond(control::encode(&answer));
}

/// What a body says. A large one is read beside the tasks of the peers.
async fn decoded(mesh: &Arc<Mesh>, body: Vec<u8>) -> Result<ControlRequest, control::Malformed> {
    if body.len() < LARGE {
        return control::decode(&body);
    }
    let decode = move || control::decode(&body);
    let read = mesh.node.checker().work(decode).await;
    read.unwrap_or(Err(control::Malformed))
}

/// The answer to what lacks records; nothing where the node stops.
async fn pulled(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
    have: Vec<[u8; 8]>,
) -> Option<ControlAnswer> {
    match mesh.node.records_for(peer, subnet).await {
        Ok(Some(records)) => {
            mesh.node
                .checker()
                .work(move || difference(&records, have))
                .await
        }
        Ok(None) => Some(ControlAnswer::NotMember),
        Err(_) => None,
    }
}

fn is_member(mesh: &Arc<Mesh>, subnet: SubnetId, peer: PeerId) -> bool {
    mesh.node.view().load().in_roll(subnet, peer)
}
