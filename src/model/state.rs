//! The whole of what this node believes: a pure machine over the records of every subnet.
//!
//! A command is *decided* on a copy ([`State::edit`]), *saved* by the caller ([`Draft::changes`]), and only then
//! *absorbed* ([`State::absorb`]): what could not be saved has changed nothing. See [`draft`](super::draft).

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;

use super::claims::claimed;
pub use super::draft::{Changes, Draft, Write};
use super::error::{Code, Error, Hint, Kind, Result};
use super::find::{Named, find};
pub use super::founding::Founding;
use super::id::{Name, PeerId, SubnetId};
use super::local::{FormerSubnet, Local, PendingJoin};
use super::members::{Identity, Subnet, printable};
use super::record::{Genesis, Signed, Verified};
use super::subnet::{Absorbed, Records};
use crate::codec;

/// Bytes that [`PendingJoin`] has gained since version 1: `declared`.
const APPENDED_JOIN: usize = 1;
/// Bytes that [`Local`] has gained since version 1, at most: `declared`, and the numbers of `companions`, `followed`,
/// `health` and `imports`.
const APPENDED_LOCAL: usize = 5;

/// No clock was right before this moment (September 2026, seconds since 1970): the program did not exist.
pub const RELEASED: u64 = 1_790_000_000;
/// How many former subnets are remembered.
const MAX_PAST: usize = 64;

/// Everything this node believes and keeps.
#[derive(Debug, Clone)]
pub struct State {
    /// This node's keys, by which it signs and is known.
    pub me: Identity,
    /// Subnets this node belongs to, or belonged to and was removed from.
    pub subnets: BTreeMap<SubnetId, Subnet>,
    /// Joins that wait for an answer.
    pub joins: BTreeMap<SubnetId, PendingJoin>,
    /// Subnets that were used here and are no more.
    pub past: Vec<FormerSubnet>,
    /// The highest time a record was signed at: the clock never falls behind it.
    signed_time: u64,
}

/// A stored item that could not be used: its key and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What the item should have been, in words.
    pub what: String,
    /// Why it was left out, in words.
    pub why: String,
}

impl State {
    /// A state without subnets, joins and history.
    pub fn new(me: Identity) -> State {
        State {
            me,
            subnets: BTreeMap::new(),
            joins: BTreeMap::new(),
            past: Vec::new(),
            signed_time: 0,
        }
    }

    /// Rebuilds what was saved. Every record's signature is checked; what is damaged is named and left out, to be
    /// fetched from the others again.
    pub fn load(
        me: Identity,
        items: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> (State, Vec<Damage>) {
        let mut state = State::new(me);
        let mut damage = Vec::new();
        let mut records = Vec::new();
        let mut harm = |what: &str, key: &[u8], why: &str| {
            let name = HEXLOWER.encode(key.get(1..key.len().min(17)).unwrap_or_default());
            damage.push(Damage {
                what: format!("{what} {name}"),
                why: why.to_owned(),
            });
        };
        for (key, value) in items {
            match key.first() {
                Some(b'l') => match read_local(&value) {
                    Some(subnet) => drop(state.subnets.insert(subnet.records.id, subnet)),
                    None => harm("membership", &key, "cannot be read"),
                },
                Some(b'r') => match Signed::parse(&value).and_then(Signed::check) {
                    Ok(record) => records.push(record),
                    Err(_) => harm("record", &key, "its signature does not verify"),
                },
                Some(b'j') => match codec::decode_grown::<PendingJoin>(&value, APPENDED_JOIN) {
                    Ok(join) => drop(state.joins.insert(join.subnet, join)),
                    Err(_) => harm("join", &key, "cannot be read"),
                },
                Some(b'p') => match codec::decode_front(&value) {
                    Ok(past) => state.past = past,
                    Err(_) => harm("history", &key, "cannot be read"),
                },
                _ => harm("item", &key, "is of no known kind"),
            }
        }
        records.sort_by_key(Verified::rank);
        for record in records {
            if let Some(subnet) = state.subnets.get_mut(&record.signed().subnet) {
                let _ = subnet.records.absorb(record);
            }
        }
        state.note_signed_time();
        (state, damage)
    }

    /// The time to judge validity by: the system's. Where that cannot be right, the latest time that someone with a say
    /// signed at.
    pub fn clock(&self, system: u64) -> u64 {
        if system < RELEASED {
            system.max(self.signed_time)
        } else {
            system
        }
    }

    pub(super) fn note_signed_time(&mut self) {
        let latest = self.subnets.values().map(|s| s.records.latest()).max();
        self.signed_time = latest.unwrap_or(0).max(self.signed_time);
    }

    /// A copy of one subnet to decide on.
    ///
    /// # Errors
    /// `E-NO-SUBNET`.
    pub fn edit(&self, text: &str) -> Result<Subnet> {
        self.find(text).cloned()
    }

    /// Finds a subnet by ID, local name, or a prefix of the ID; see [`find`](super::find).
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-AMBIGUOUS`.
    pub fn find(&self, text: &str) -> Result<&Subnet> {
        let here: Vec<Named<SubnetId>> = self
            .subnets
            .iter()
            .map(|(id, s)| Named::new(*id, *id, &s.local.alias))
            .collect();
        let id = find(&here, text).map_err(|miss| miss.error(text, || no_subnet(text)))?;
        self.subnets.get(&id).ok_or_else(|| no_subnet(text))
    }

    /// Finds what can be left: a subnet that is here, or a join that waits.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-AMBIGUOUS`.
    pub fn find_joined_or_waiting(&self, text: &str) -> Result<SubnetId> {
        let here = self
            .subnets
            .iter()
            .map(|(id, s)| Named::new(*id, *id, &s.local.alias));
        // Asked for again, a subnet that is here has the name it has here.
        let away = self
            .joins
            .values()
            .filter(|join| !self.subnets.contains_key(&join.subnet));
        let waiting = away.map(|join| Named::new(join.subnet, join.subnet, join.shown()));
        let all: Vec<Named<SubnetId>> = here.chain(waiting).collect();
        find(&all, text).map_err(|miss| miss.error(text, || no_subnet(text)))
    }

    /// A former subnet by ID, name, or a prefix of the ID; of several of one name the last.
    pub fn find_past(&self, text: &str) -> Option<&FormerSubnet> {
        let last: BTreeMap<&Name, &FormerSubnet> = self.past.iter().map(|p| (&p.name, p)).collect();
        let all: Vec<Named<SubnetId>> = last
            .values()
            .map(|p| Named::new(p.id, p.id, &p.name))
            .collect();
        let of_name = find(&all, text).ok();
        let by_id = || {
            text.parse()
                .ok()
                .filter(|id| self.past.iter().any(|p| p.id == *id))
        };
        let id = of_name.or_else(by_id)?;
        self.past.iter().rev().find(|p| p.id == id)
    }

    /// Takes records from a peer in; gives the draft to save and those that were new. Records of unknown subnets are
    /// ignored, and `None` says that nothing has changed.
    pub fn take(&self, subnet: SubnetId, records: &[Verified]) -> Option<(Draft, Vec<Verified>)> {
        let held = self.subnets.get(&subnet)?;
        // What is known already costs no copy.
        let mut unknown = records
            .iter()
            .filter(|r| !held.records.knows(&r.digest()))
            .peekable();
        unknown.peek()?;
        let mut copy = held.clone();
        let (mut news, mut parked) = (Vec::new(), false);
        let mut fresh: Vec<(String, PeerId)> = Vec::new();
        for record in unknown {
            if let Verified::Announcement(announcement) = record {
                let issuer = record.signed().issuer;
                let before = held
                    .records
                    .announcement(issuer)
                    .map(claimed)
                    .unwrap_or_default();
                fresh.extend(
                    claimed(announcement.body())
                        .difference(&before)
                        .map(|name| ((*name).to_owned(), issuer)),
                );
            }
            match copy.records.absorb(record.clone()) {
                Absorbed::New => news.push(record.clone()),
                Absorbed::Parked => parked = true,
                Absorbed::Known | Absorbed::Refused => {}
            }
        }
        if news.is_empty() && !parked {
            return None;
        }
        copy.note_answers(&fresh);
        let mut draft = Draft::default();
        draft.put(copy);
        Some((draft, news))
    }

    /// A draft that removes a subnet and remembers its name, with the proof of its end where it was destroyed.
    pub fn forget(&self, id: SubnetId, told: bool) -> Draft {
        let mut draft = Draft::default();
        let Some(subnet) = self.subnets.get(&id) else {
            return draft;
        };
        // Who was away when this node left hears of it later: its own last word says so.
        let goodbye = || self.last_goodbye(id).map(|said| said.signed().clone());
        let proof = if subnet.records.destroyed() {
            subnet.records.head_records()
        } else {
            goodbye().into_iter().collect()
        };
        let (name, genesis) = (subnet.local.alias.clone(), subnet.local.genesis.clone());
        draft.remember(self.past_with(FormerSubnet {
            id,
            name,
            proof,
            genesis,
            untold: !told,
        }));
        draft.remove(id);
        draft
    }

    /// The former subnets with one more, which takes the place of what was remembered of it.
    pub(super) fn past_with(&self, former: FormerSubnet) -> Vec<FormerSubnet> {
        let others = self.past.iter().filter(|p| p.id != former.id);
        let mut past: Vec<FormerSubnet> = others.cloned().collect();
        past.push(former);
        let surplus = past.len().saturating_sub(MAX_PAST);
        past.drain(..surplus);
        past
    }

    /// Where members have answered, in whichever subnet.
    pub fn reached(&self) -> BTreeMap<PeerId, Vec<String>> {
        let mut all: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
        for (peer, addresses) in self.subnets.values().flat_map(|s| &s.local.reached) {
            let list = all.entry(*peer).or_default();
            list.extend(
                addresses
                    .iter()
                    .filter(|a| !list.contains(a))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
        all
    }

    /// All addresses a peer was said to have, from its own announcements.
    pub fn endpoints(&self) -> BTreeMap<PeerId, Vec<String>> {
        let mut all: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
        for subnet in self.subnets.values() {
            for (peer, announcement) in subnet.records.announcements() {
                let list = all.entry(peer).or_default();
                list.extend(
                    announcement
                        .endpoints
                        .iter()
                        .filter(|e| !list.contains(e))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
            }
        }
        all
    }
}

fn no_subnet(text: &str) -> Error {
    Error::new(
        Kind::NotFound,
        Code::NoSubnet,
        format!("no subnet {} here", printable(text)),
    )
    .hint(Hint::ListSubnets)
}

fn read_local(bytes: &[u8]) -> Option<Subnet> {
    let mut local: Local = codec::decode_grown(bytes, APPENDED_LOCAL).ok()?;
    local.undo_unconfirmed();
    let genesis = Genesis::parse(&local.genesis).ok()?;
    Some(Subnet::new(Records::new(genesis), local))
}
