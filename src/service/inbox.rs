//! Requests of members: what each may have waiting, and of control one piece of work at a time for each.
//!
//! The connection that carries a message pays for it before it is looked at: for its place and its bytes here, then for
//! each record that has to be checked, and dearly for each that is forged, because an honest member passes on only what
//! it has checked itself. Who has used up its share waits, and who does not wait is refused; neither delays anybody else.
//! A large push is taken in pieces, so that a head or a question sent after it is not behind all of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Mesh, dispatch, sessions};
use crate::api::types::Error;
use crate::limit::{Buckets, Limit};
use crate::link::direct::Letter;
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Signed;
use crate::model::source::Payer;
use crate::node::{PIECE, PIECE_BYTES, difference};
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
/// What a forged record costs, in records.
const FORGED_COST: u64 = 64;
/// Forged records, and records that nobody known signed, after which the rest of a push is not looked at.
const MAX_JUNK: usize = 64;
/// Longest time a head waits because who passed it on has used up its share.
const HEAD_WAITS: Duration = Duration::from_millis(250);
/// Time for which a refused request is left without an answer: who sends without end is slowed by its own limit on
/// requests under way.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// Members whose share is remembered.
const MEMBERS: usize = 4096;
/// Bytes from which on a message is decoded off the asynchronous threads.
const LARGE: usize = 16 * 1024;

/// One request.
struct Request {
    body: Vec<u8>,
    responder: Responder,
    place: Place,
}

/// What one member has waiting.
#[derive(Default)]
struct Share {
    waiting: VecDeque<Request>,
    /// Those being answered among them.
    requests: usize,
    bytes: usize,
    /// Whether a task answers them.
    served: bool,
    came: Arc<Notify>,
}

struct Inner {
    shares: BTreeMap<PeerId, Share>,
    bytes: usize,
    requests: Buckets<PeerId>,
    records: Buckets<PeerId>,
}

/// Everything members have waiting. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbox(Arc<Mutex<Inner>>);

/// Room that a request takes until it is answered.
struct Place {
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request of `peer` wait. Gives whether a task has to be started for them.
    ///
    /// # Errors
    /// The responder back, and why there is no room.
    fn enter(&self, peer: PeerId, body: Vec<u8>, responder: Responder) -> Result<bool, (Responder, &'static str)> {
        let mut inner = self.lock();
        if !inner.requests.take(peer, 1, Instant::now().into_std()) {
            return Err((responder, "too many control requests from a member"));
        }
        let Some(place) = self.place(&mut inner, peer, body.len()) else {
            return Err((responder, "a member has too many control requests waiting"));
        };
        let share = inner.shares.entry(peer).or_default();
        share.waiting.push_back(Request { body, responder, place });
        let start = !std::mem::replace(&mut share.served, true);
        share.came.notify_one();
        Ok(start)
    }

    /// Room for a request of `peer` beside all that it has waiting, of whatever protocol.
    fn place(&self, inner: &mut Inner, peer: PeerId, bytes: usize) -> Option<Place> {
        let all = inner.bytes.saturating_add(bytes);
        let held = inner.shares.get(&peer).map_or((0, 0), |share| (share.requests, share.bytes));
        let full = held.1.saturating_add(bytes) > BYTES || all > ALL_BYTES;
        if held.0 >= REQUESTS || (full && held.0 > 0) {
            return None;
        }
        let share = inner.shares.entry(peer).or_default();
        share.requests = share.requests.saturating_add(1);
        share.bytes = share.bytes.saturating_add(bytes);
        inner.bytes = all;
        Some(Place { inbox: self.clone(), peer, bytes })
    }

    fn next(&self, peer: PeerId) -> Option<Request> {
        self.lock().shares.get_mut(&peer)?.waiting.pop_front()
    }

    /// Charges a member for records. Gives how long it has to wait for what it took beyond its share.
    fn charge(&self, peer: PeerId, records: u64) -> Duration {
        self.lock().records.owe(peer, records, Instant::now().into_std())
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
        let Some(share) = inner.shares.get_mut(&self.peer) else { return true };
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

/// A push that is being taken.
struct Push {
    subnet: SubnetId,
    records: VecDeque<Signed>,
    junk: usize,
    waiting: bool,
    responder: Responder,
    _place: Place,
}

impl Push {
    /// Whether its next records say who is in or out.
    fn is_urgent(&self) -> bool {
        self.records.front().is_some_and(removes)
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
    let taken =
        if has_room { mesh.service.arrived(peer, body, respond) } else { mesh.service.crowded(peer, body, respond) };
    if let Err(why) = taken {
        mesh.table.refuse(peer, Protocol::Service, why);
    }
}

async fn serve(mesh: Arc<Mesh>, peer: PeerId) {
    let came = mesh.inbox.lock().shares.entry(peer).or_default().came.clone();
    let mut serving = Serving { inbox: mesh.inbox.clone(), peer, came, ended: false };
    let mut pushes: VecDeque<Push> = VecDeque::new();
    // Until when this member waits for what it took beyond its share.
    let mut rests_until = Instant::now();
    loop {
        while let Some(request) = mesh.inbox.next(peer) {
            open(&mesh, peer, request, &mut pushes).await;
        }
        let urgent = pushes.iter().position(Push::is_urgent);
        let Some(push) = pushes.get_mut(urgent.unwrap_or(0)) else {
            if serving.end() {
                return;
            }
            continue;
        };
        let until = if urgent.is_some() { rests_until.min(Instant::now() + HEAD_WAITS) } else { rests_until };
        if until > Instant::now() {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                // It may be something that does not have to wait.
                () = serving.came.notified(), if urgent.is_none() => continue,
            }
        }
        let piece = piece_of(&mut push.records);
        match take_piece(&mesh, peer, push.subnet, piece).await {
            Ok(taken) => {
                push.junk = push.junk.saturating_add(taken.junk);
                push.waiting |= taken.waiting;
                rests_until = Instant::now() + taken.rest;
            }
            // The node is stopping.
            Err(_) => return,
        }
        if push.junk >= MAX_JUNK {
            mesh.table.refuse(peer, Protocol::Control, "a member sends forged records, or records of nobody known");
            push.waiting = true;
            push.records.clear();
        }
        if push.records.is_empty()
            && let Some(push) = pushes.remove(urgent.unwrap_or(0))
        {
            finish(&mesh, peer, push);
        }
    }
}

/// Answers a push once what it brought is saved, without keeping the next waiting.
fn finish(mesh: &Arc<Mesh>, peer: PeerId, push: Push) {
    let node = mesh.node.clone();
    mesh.spawn(async move {
        let saved = node.saved_for(peer).await.unwrap_or(false);
        let answer = if saved && !push.waiting { ControlAnswer::Done } else { ControlAnswer::Different };
        push.responder.respond(control::encode(&answer));
    });
}

/// Answers a request at once, or makes a push of it.
async fn open(mesh: &Arc<Mesh>, peer: PeerId, request: Request, pushes: &mut VecDeque<Push>) {
    let Request { body, responder, place } = request;
    let decoded = if body.len() < LARGE {
        control::decode::<ControlRequest>(&body)
    } else {
        let decode = move || control::decode::<ControlRequest>(&body);
        mesh.node.checker().work(decode).await.unwrap_or(Err(control::Malformed))
    };
    let answer = match decoded {
        Err(_) => {
            mesh.inbox.charge(peer, FORGED_COST);
            return mesh.table.refuse(peer, Protocol::Control, "a malformed request");
        }
        Ok(ControlRequest::Push { subnet, .. }) if !is_member(mesh, subnet, peer) => ControlAnswer::NotMember,
        Ok(ControlRequest::Push { subnet, mut records }) => {
            // Who is in and who is out comes before what members say of themselves, whatever the order they came in.
            records.sort_by_key(|record| !removes(record));
            let records = VecDeque::from(records);
            return pushes.push_back(Push { subnet, records, junk: 0, waiting: false, responder, _place: place });
        }
        Ok(ControlRequest::Session { subnet, message, endpoints }) => {
            let shared = Arc::clone(mesh);
            mesh.spawn(async move {
                let answer = sessions::answer(&shared, peer, subnet, Letter { message, endpoints }).await;
                responder.respond(control::encode(&answer));
                drop(place);
            });
            return;
        }
        Ok(ControlRequest::Forward(request)) => dispatch::decide(mesh, peer, Payer::Member(peer), request, true)
            .await
            .map_or(ControlAnswer::NotMember, ControlAnswer::Forwarded),
        Ok(ControlRequest::Compare { subnet, hash }) => {
            let Ok(answer) = mesh.node.answer_compare(peer, subnet, hash).await else { return };
            answer
        }
        Ok(ControlRequest::Pull { subnet, have }) => match mesh.node.records_for(peer, subnet).await {
            Ok(Some(records)) => {
                let Some(answer) = mesh.node.checker().work(move || difference(&records, have)).await else {
                    return;
                };
                answer
            }
            Ok(None) => ControlAnswer::NotMember,
            Err(_) => return,
        },
    };
    responder.respond(control::encode(&answer));
}

fn is_member(mesh: &Arc<Mesh>, subnet: SubnetId, peer: PeerId) -> bool {
    mesh.node.view().load().in_roll(subnet, peer)
}

/// Second and fourth kind of body: who administers, and who is out.
fn removes(record: &Signed) -> bool {
    matches!(record.body.first(), Some(1 | 3))
}

/// The next records, as many as are worked on in one go; heads are not mixed with others.
fn piece_of(records: &mut VecDeque<Signed>) -> Vec<Signed> {
    let heads = records.front().is_some_and(removes);
    let mut room = PIECE_BYTES;
    let mut piece = Vec::new();
    while piece.len() < PIECE
        && records.front().is_some_and(|r| removes(r) == heads && (piece.is_empty() || r.body.len() <= room))
        && let Some(record) = records.pop_front()
    {
        room = room.saturating_sub(record.body.len());
        piece.push(record);
    }
    piece
}

/// What came of a piece.
#[derive(Debug, Default)]
struct Taken {
    news: usize,
    junk: usize,
    waiting: bool,
    /// How long who sent it has to wait before the next.
    rest: Duration,
}

/// Checks a piece, charges who sent it, and hands it to the node when it is that peer's turn.
async fn take_piece(mesh: &Arc<Mesh>, peer: PeerId, subnet: SubnetId, piece: Vec<Signed>) -> Result<Taken, Error> {
    let urgent = piece.first().is_some_and(removes);
    let all = piece.len();
    let checked = mesh.node.checker().records(subnet, piece).await;
    let forged = u64::try_from(checked.forged).unwrap_or(u64::MAX);
    let cost = u64::try_from(all).unwrap_or(u64::MAX).saturating_add(forged.saturating_mul(FORGED_COST));
    let mut taken = Taken { junk: checked.forged, rest: mesh.inbox.charge(peer, cost), ..Taken::default() };
    if checked.good.is_empty() {
        return Ok(taken);
    }
    match mesh.node.receive(peer, subnet, checked.good, urgent).await {
        Ok(verdict) => {
            taken.news = verdict.news;
            taken.junk = taken.junk.saturating_add(verdict.unknown);
            taken.waiting = verdict.waiting;
        }
        Err(error) if error.code == "E-BUSY" => taken.waiting = true,
        Err(error) => return Err(error),
    }
    Ok(taken)
}

/// Takes in what a member answered with. Gives whether anything was new.
///
/// # Errors
/// `E-STOPPING`.
pub(crate) async fn take(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
    records: Vec<Signed>,
) -> Result<bool, Error> {
    let mut records = VecDeque::from(records);
    let (mut news, mut junk) = (false, 0usize);
    while !records.is_empty() && junk < MAX_JUNK {
        let taken = take_piece(mesh, peer, subnet, piece_of(&mut records)).await?;
        news |= taken.news > 0;
        junk = junk.saturating_add(taken.junk);
        tokio::time::sleep(taken.rest).await;
    }
    mesh.node.saved_for(peer).await?;
    Ok(news)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::{Body, Doc, Head};
    use ed25519_dalek::SigningKey;

    fn signed(body: &Body) -> Signed {
        Signed::new(SubnetId([1; 16]), body, &SigningKey::from_bytes(&[7; 32]))
    }

    fn doc(endpoints: usize) -> Signed {
        let endpoints = (0..endpoints).map(|n| format!("{n:0250}")).collect();
        signed(&Body::Doc(Doc { version: 1, endpoints, ..Doc::default() }))
    }

    #[test]
    fn a_piece_holds_heads_or_others_and_no_more_than_its_share() {
        let head = signed(&Body::Head(Head { number: 1, seats: vec![], least: 0, destroyed: false, issued: 0 }));
        let mut records: VecDeque<Signed> =
            [vec![head.clone(), head], vec![doc(0); 100], vec![doc(32); 100]].concat().into();
        let mut sizes = Vec::new();
        while !records.is_empty() {
            let piece = piece_of(&mut records);
            let bytes: usize = piece.iter().map(|r| r.body.len()).sum();
            assert!(piece.len() <= PIECE && bytes <= PIECE_BYTES);
            sizes.push(piece.len());
        }
        assert_eq!((sizes[0], sizes.iter().sum::<usize>()), (2, 202));
        // A record as large as any is a piece of its own.
        let mut large = doc(1);
        large.body = vec![2; PIECE_BYTES + 1];
        let mut records = VecDeque::from([large.clone(), large]);
        assert_eq!((piece_of(&mut records).len(), piece_of(&mut records).len()), (1, 1));
    }
}
