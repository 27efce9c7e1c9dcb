//! Taking records in: what members push, and what they answer.
//!
//! Limits: each member has a bucket of records, which every record that has to be checked is taken from, a forged one many
//! times; who has used it up waits, and nobody else. Of a push with too much junk the rest is not looked at. A large push is
//! taken in pieces, those first that say who is in or out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::types::Error;
use crate::model::error::Code;
use crate::model::id::{PeerId, SubnetId};
use crate::model::record::Signed;
use crate::node::{PIECE, PIECE_BYTES};
use crate::p2p::{Protocol, Responder};
use crate::service::Mesh;
use crate::service::inbox::Place;
use crate::wire::control::{self, ControlAnswer};

/// What a forged record costs its sender, counted in records.
pub(in crate::service) const FORGED_COST: u64 = 64;
/// Forged records, and records that nobody known signed, after which the rest of a push is not looked at.
const MAX_JUNK: usize = 64;
/// Longest time a head waits because who passed it on has used up its share.
const HEAD_WAITS: Duration = Duration::from_millis(250);

/// A push of records that is being taken, piece by piece.
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

/// What one member has pushed and is not taken yet.
pub(in crate::service) struct Pushes {
    waiting: VecDeque<Push>,
    /// The moment until which this member waits for what it took beyond its share.
    rests_until: Instant,
}

impl Default for Pushes {
    fn default() -> Pushes {
        Pushes {
            waiting: VecDeque::new(),
            rests_until: Instant::now(),
        }
    }
}

impl Pushes {
    pub(in crate::service) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds one, with its place in the inbox, which it keeps until it is answered.
    pub(in crate::service) fn add(
        &mut self,
        subnet: SubnetId,
        mut records: Vec<Signed>,
        responder: Responder,
        place: Place,
    ) {
        // Who is in and who is out comes before what members say of themselves, whatever the order they came in.
        records.sort_by_key(|record| !removes(record));
        let records = VecDeque::from(records);
        self.waiting.push_back(Push {
            subnet,
            records,
            junk: 0,
            waiting: false,
            responder,
            _place: place,
        });
    }

    /// Takes the next piece, when this member does not have to wait any more; or nothing, where something `came` meanwhile.
    ///
    /// # Errors
    /// `E-STOPPING`.
    pub(in crate::service) async fn take_piece(
        &mut self,
        mesh: &Arc<Mesh>,
        peer: PeerId,
        came: &Notify,
    ) -> Result<(), Error> {
        let urgent = self.waiting.iter().position(Push::is_urgent);
        let Some(push) = self.waiting.get_mut(urgent.unwrap_or(0)) else {
            return Ok(());
        };
        let rests_until = self.rests_until;
        let until = if urgent.is_some() {
            rests_until.min(Instant::now() + HEAD_WAITS)
        } else {
            rests_until
        };
        if until > Instant::now() {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                // It may be something that does not have to wait.
                () = came.notified(), if urgent.is_none() => return Ok(()),
            }
        }
        let piece = piece_of(&mut push.records);
        let taken = take_piece(mesh, peer, push.subnet, piece).await?;
        push.junk = push.junk.saturating_add(taken.junk);
        push.waiting |= taken.waiting;
        self.rests_until = Instant::now() + taken.rest;
        if push.junk >= MAX_JUNK {
            mesh.table.refuse(
                peer,
                Protocol::Control,
                "a member sends forged records, or records of nobody known",
            );
            push.waiting = true;
            push.records.clear();
        }
        if push.records.is_empty()
            && let Some(push) = self.waiting.remove(urgent.unwrap_or(0))
        {
            finish(mesh, peer, push);
        }
        Ok(())
    }
}

/// Answers a push once what it brought is saved, without keeping the next waiting.
fn finish(mesh: &Arc<Mesh>, peer: PeerId, push: Push) {
    let node = mesh.node.clone();
    mesh.spawn(async move {
        let saved = node.saved_for(peer).await.unwrap_or(false);
        let answer = if saved && !push.waiting {
            ControlAnswer::Done
        } else {
            ControlAnswer::Different
        };
        push.responder.respond(control::encode(&answer));
    });
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
        && records
            .front()
            .is_some_and(|r| removes(r) == heads && (piece.is_empty() || r.body.len() <= room))
        && let Some(record) = records.pop_front()
    {
        room = room.saturating_sub(record.body.len());
        piece.push(record);
    }
    piece
}

/// What came of taking a piece.
#[derive(Debug, Default)]
struct Taken {
    news: usize,
    junk: usize,
    waiting: bool,
    /// How long who sent it has to wait before the next.
    rest: Duration,
}

/// Checks a piece, charges who sent it, and hands it to the node when it is that peer's turn.
async fn take_piece(
    mesh: &Arc<Mesh>,
    peer: PeerId,
    subnet: SubnetId,
    piece: Vec<Signed>,
) -> Result<Taken, Error> {
    let urgent = piece.first().is_some_and(removes);
    let all = piece.len();
    let checked = mesh.node.checker().records(subnet, piece).await;
    if !checked.told.is_empty() {
        let mut spread = mesh.spread.lock();
        checked
            .told
            .iter()
            .for_each(|digest| spread.heard(peer, *digest));
    }
    let forged = u64::try_from(checked.forged).unwrap_or(u64::MAX);
    let cost = u64::try_from(all)
        .unwrap_or(u64::MAX)
        .saturating_add(forged.saturating_mul(FORGED_COST));
    let mut taken = Taken {
        junk: checked.forged,
        rest: mesh.inbox.charge(peer, cost),
        ..Taken::default()
    };
    if checked.good.is_empty() {
        return Ok(taken);
    }
    match mesh.node.receive(peer, subnet, checked.good, urgent).await {
        Ok(verdict) => {
            taken.news = verdict.news;
            taken.junk = taken.junk.saturating_add(verdict.unknown);
            taken.waiting = verdict.waiting;
        }
        Err(error) if error.code == Code::Busy => taken.waiting = true,
        Err(error) => return Err(error),
    }
    Ok(taken)
}

/// Takes in what a member answered with. Gives whether anything was new.
///
/// # Errors
/// `E-STOPPING`.
pub(in crate::service) async fn take(
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
    use crate::model::record::{Announcement, Body, Head};
    use ed25519_dalek::SigningKey;

    fn signed(body: &Body) -> Signed {
        Signed::new(SubnetId([1; 16]), body, &SigningKey::from_bytes(&[7; 32]))
    }

    fn announcement(endpoints: usize) -> Signed {
        let endpoints = (0..endpoints).map(|n| format!("{n:0250}")).collect();
        signed(&Body::Announcement(Announcement {
            version: 1,
            endpoints,
            ..Announcement::default()
        }))
    }

    #[test]
    fn a_piece_holds_heads_or_others_and_no_more_than_its_share() {
        let head = signed(&Body::Head(Head {
            number: 1,
            seats: vec![],
            least: 0,
            destroyed: false,
            issued: 0,
        }));
        let mut records: VecDeque<Signed> = [
            vec![head.clone(), head],
            vec![announcement(0); 100],
            vec![announcement(32); 100],
        ]
        .concat()
        .into();
        let mut sizes = Vec::new();
        while !records.is_empty() {
            let piece = piece_of(&mut records);
            let bytes: usize = piece.iter().map(|r| r.body.len()).sum();
            assert!(piece.len() <= PIECE && bytes <= PIECE_BYTES);
            sizes.push(piece.len());
        }
        assert_eq!((sizes[0], sizes.iter().sum::<usize>()), (2, 202));
        // A record as large as any is a piece of its own.
        let mut large = announcement(1);
        large.body = vec![2; PIECE_BYTES + 1];
        let mut records = VecDeque::from([large.clone(), large]);
        assert_eq!(
            (piece_of(&mut records).len(), piece_of(&mut records).len()),
            (1, 1)
        );
    }
}
