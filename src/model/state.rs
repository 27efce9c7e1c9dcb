//! The whole of what this node believes: a pure machine over the records of every subnet.
//!
//! A command is *decided* on a copy ([`State::edit`]), *saved* by the caller ([`Draft::changes`]), and only then
//! *absorbed* ([`State::absorb`]): what could not be saved has changed nothing. See [`draft`](super::draft).

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::claims::claimed;
pub use super::draft::{Changes, Draft, Write};
use super::error::{Code, Error, Hint, Kind, Result};
use super::find::{Named, find};
use super::id::{Name, PeerId, SubnetId};
use super::ipam::{default_block4, overlaps, pick_pool4};
use super::join::Ask;
use super::local::{Local, Past, PendingJoin};
use super::members::{Identity, Subnet, printable};
use super::policy::{self, Around, is_subnet_domain, pool_fault};
use super::record::{Admission, Body, Doc, Genesis, Grant, Prefix6, Role, Signed, Term, Verified};
use super::subnet::{Absorbed, Records};

/// No clock was right before this moment (September 2026, seconds since 1970): the program did not exist.
pub const RELEASED: u64 = 1_790_000_000;
/// Former subnets remembered.
const MAX_PAST: usize = 64;

/// Everything this node believes and keeps.
#[derive(Debug, Clone)]
pub struct State {
    /// This node's keys.
    pub me: Identity,
    /// Subnets this node belongs to, or belonged to and was removed from.
    pub subnets: BTreeMap<SubnetId, Subnet>,
    /// Joins that wait for an answer.
    pub joins: BTreeMap<SubnetId, PendingJoin>,
    /// Subnets that are no more here.
    pub past: Vec<Past>,
    /// The highest time a record was signed at: the clock never falls behind it.
    signed_time: u64,
}

/// How a subnet comes to this machine: what helps where it cannot depends on that.
#[derive(Debug, Clone, Copy)]
enum Coming<'a> {
    /// Its founder chooses its name and prefixes.
    Founded,
    /// A joiner chooses only what it is called here. `target` is what was typed to join: `INVITE`, or the ID.
    Joined { target: &'a str },
}

/// What `create` was asked for, checked for form only.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Name of the subnet.
    pub name: Name,
    /// `None`: no version 4; `Some(None)`: pick one.
    pub cidr4: Option<Option<Ipv4Net>>,
    /// `None`: no version 6; `Some(None)`: derived from the ID.
    pub cidr6: Option<Option<Ipv6Net>>,
    /// Prefix length of a member's block.
    pub block4: Option<u8>,
    /// Who decides about a bare-ID join.
    pub admission: Admission,
    /// Domain of the names; `<name>.internal` where none.
    pub domain: Option<String>,
    /// Seconds a grant lasts.
    pub grant_life: Option<u64>,
    /// This member's name.
    pub member: Name,
    /// What the pools must not take from this machine.
    pub around: Around,
    /// 16 random bytes.
    pub salt: [u8; 16],
    /// What of this machine itself the subnet reaches; none: nothing was said of it, it is closed.
    pub host: Option<super::host::HostPolicy>,
}

/// Seconds a grant lasts where nobody said otherwise.
const GRANT_LIFE: u64 = 90 * 86_400;

impl Founding {
    fn domain(&self) -> String {
        self.domain.clone().unwrap_or_else(|| format!("{}.internal", self.name))
    }
}

fn prefix6(asked: Option<Option<Ipv6Net>>) -> Prefix6 {
    match asked {
        None => Prefix6::None,
        Some(None) => Prefix6::Derived,
        Some(Some(given)) => Prefix6::Given(given),
    }
}

/// A stored item that could not be used: its key and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What it was.
    pub what: String,
    /// Why it was left out.
    pub why: String,
}

impl State {
    /// Knows nothing yet.
    pub fn new(me: Identity) -> State {
        State { me, subnets: BTreeMap::new(), joins: BTreeMap::new(), past: Vec::new(), signed_time: 0 }
    }

    /// Rebuilds what was saved. Every record's signature is checked; what is damaged is named and left out, to be
    /// fetched from the others again.
    pub fn load(me: Identity, items: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> (State, Vec<Damage>) {
        let mut state = State::new(me);
        let mut damage = Vec::new();
        let mut records = Vec::new();
        let mut harm = |what: &str, key: &[u8], why: &str| {
            let name = HEXLOWER.encode(key.get(1..key.len().min(17)).unwrap_or_default());
            damage.push(Damage { what: format!("{what} {name}"), why: why.to_owned() });
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
                Some(b'j') => match postcard::from_bytes::<PendingJoin>(&value) {
                    Ok(join) => drop(state.joins.insert(join.subnet, join)),
                    Err(_) => harm("join", &key, "cannot be read"),
                },
                Some(b'p') => match postcard::from_bytes(&value) {
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
        if system < RELEASED { system.max(self.signed_time) } else { system }
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
        let here: Vec<Named<SubnetId>> =
            self.subnets.iter().map(|(id, s)| Named::new(*id, *id, &s.local.alias)).collect();
        let id = find(&here, text).map_err(|miss| miss.error(text, || no_subnet(text)))?;
        self.subnets.get(&id).ok_or_else(|| no_subnet(text))
    }

    /// Finds what can be left: a subnet that is here, or a join that waits.
    ///
    /// # Errors
    /// `E-NO-SUBNET`, `E-AMBIGUOUS`.
    pub fn find_joined_or_waiting(&self, text: &str) -> Result<SubnetId> {
        let here = self.subnets.iter().map(|(id, s)| Named::new(*id, *id, &s.local.alias));
        // Asked for again, a subnet that is here has the name it has here.
        let away = self.joins.values().filter(|join| !self.subnets.contains_key(&join.subnet));
        let waiting = away.map(|join| Named::new(join.subnet, join.subnet, join.shown()));
        let all: Vec<Named<SubnetId>> = here.chain(waiting).collect();
        find(&all, text).map_err(|miss| miss.error(text, || no_subnet(text)))
    }

    /// A former subnet by ID, name, or a prefix of the ID; of several of one name the last.
    pub fn find_past(&self, text: &str) -> Option<&Past> {
        let last: BTreeMap<&Name, &Past> = self.past.iter().map(|p| (&p.name, p)).collect();
        let all: Vec<Named<SubnetId>> = last.values().map(|p| Named::new(p.id, p.id, &p.name)).collect();
        let of_name = find(&all, text).ok();
        let by_id = || text.parse().ok().filter(|id| self.past.iter().any(|p| p.id == *id));
        let id = of_name.or_else(by_id)?;
        self.past.iter().rev().find(|p| p.id == id)
    }

    /// Refuses a prefix that overlaps a route of this machine or another subnet here, or holds an address it cannot do
    /// without. Routes to this daemon's own links are not in `around`.
    ///
    /// # Errors
    /// `E-CIDR-OVERLAP`.
    fn check_overlap(&self, name: &Name, prefixes: &[IpNet], around: &Around, coming: Coming<'_>) -> Result<()> {
        for prefix in prefixes {
            let other = self.subnets.values().find(|s| s.records.prefixes().iter().any(|p| overlaps(*p, *prefix)));
            let route = around.routed.iter().find(|(p, _)| overlaps(*p, *prefix));
            let need = around.needs.iter().find(|need| prefix.contains(&need.address));
            let why = match (other, route, need) {
                (Some(subnet), ..) => format!("subnet {} uses it here", subnet.name()),
                (None, Some((_, link)), _) => format!("this machine already routes it to {link}"),
                (None, None, Some(need)) => format!("it holds {}", need.what),
                (None, None, None) => continue,
            };
            let hint = match (coming, other, route) {
                (Coming::Founded, ..) => self.other_prefix(name, *prefix, around),
                // Its prefixes are those its founder chose.
                (Coming::Joined { .. }, Some(subnet), _) => Some(Hint::ShowRival(subnet.name().clone())),
                (Coming::Joined { .. }, None, Some((routed, _))) => Some(Hint::ShowRoute(*routed)),
                (Coming::Joined { .. }, None, None) => Some(Hint::AskForPrefix),
            };
            let message = format!("cannot use {prefix} for subnet {name}: {why}");
            return Err(Error::new(Kind::Conflict, Code::CidrOverlap, message).hint(hint));
        }
        Ok(())
    }

    /// How `name` is founded with another prefix than `refused`.
    fn other_prefix(&self, name: &Name, refused: IpNet, around: &Around) -> Option<Hint> {
        if refused.addr().is_ipv6() {
            return Some(Hint::FoundWithAny6(name.clone()));
        }
        let taken: Vec<IpNet> =
            around.taken().chain(self.subnets.values().flat_map(|s| s.records.prefixes())).collect();
        pick_pool4(&taken, 0).ok().map(|free| Hint::FoundWithFree4 { name: name.clone(), free })
    }

    fn check_alias(&self, alias: &Name, coming: Coming<'_>) -> Result<()> {
        let Some(same) = self.subnets.values().find(|s| s.local.alias == *alias) else { return Ok(()) };
        let message = format!("a subnet named {alias} exists here: {}", same.records.id);
        let hint = match coming {
            Coming::Founded => Hint::ShowNamesake(alias.clone()),
            Coming::Joined { target } => Hint::JoinAs(target.to_owned()),
        };
        Err(Error::new(Kind::Conflict, Code::SubnetExists, message).hint(hint))
    }

    /// The subnet that this node founded with these values, if it has done so: what was left open then fits what was
    /// chosen.
    pub fn founded(&self, founding: &Founding) -> Option<&Subnet> {
        let subnet = self.subnets.values().find(|s| s.local.alias == founding.name)?;
        let genesis = &subnet.records.genesis;
        let block4 = default_block4(genesis.cidr4.map_or(16, |c| c.prefix_len()));
        let same = (genesis.owner, &genesis.name) == (self.me.peer, &founding.name)
            && match founding.cidr4 {
                None => genesis.cidr4.is_none(),
                Some(None) => genesis.cidr4.is_some(),
                Some(given) => genesis.cidr4 == given,
            }
            && genesis.cidr6 == prefix6(founding.cidr6)
            && genesis.block4 == founding.block4.unwrap_or(block4)
            && genesis.admission == founding.admission
            && genesis.domain == founding.domain()
            && genesis.grant_life == founding.grant_life.unwrap_or(GRANT_LIFE)
            && founding.host.as_ref().is_none_or(|host| *host == subnet.local.host)
            && !subnet.records.destroyed();
        same.then_some(subnet)
    }

    /// Founds a subnet: this node owns it and is its first member.
    ///
    /// # Errors
    /// `E-SUBNET-EXISTS`, `E-CIDR`, `E-CIDR-OVERLAP`, `E-POOL-NONE`.
    pub fn found(&self, founding: Founding, now: u64) -> Result<Subnet> {
        self.check_alias(&founding.name, Coming::Founded)?;
        let taken: Vec<IpNet> =
            founding.around.taken().chain(self.subnets.values().flat_map(|s| s.records.prefixes())).collect();
        let usage = |code, message: String| Error::new(Kind::Usage, code, message);
        let cidr4 = match founding.cidr4 {
            None => None,
            Some(Some(given)) => Some(given),
            Some(None) => Some(pick_pool4(&taken, founding.salt.first().copied().unwrap_or(0))?),
        };
        for given in cidr4.map(IpNet::V4).into_iter().chain(founding.cidr6.flatten().map(IpNet::V6)) {
            if let Some(why) = pool_fault(given) {
                return Err(usage(Code::Cidr, format!("{given} {why}")));
            }
        }
        if cidr4.is_none() && founding.cidr6.is_none() {
            return Err(usage(Code::Cidr, "a subnet needs a version 4 or a version 6 pool".to_owned()));
        }
        let pool_len = cidr4.map_or(16, |c| c.prefix_len());
        let block4 = founding.block4.unwrap_or_else(|| default_block4(pool_len));
        if block4 < pool_len || block4 > 32 {
            return Err(usage(
                Code::Cidr,
                format!("a block of length {block4} does not fit into a pool of length {pool_len}"),
            ));
        }
        let domain = founding.domain();
        if !is_subnet_domain(&domain) {
            let message = format!("{} is no domain for a subnet: it has two labels at least", printable(&domain));
            return Err(usage(Code::Name, message));
        }
        let genesis = Genesis {
            version: 1,
            owner: self.me.peer,
            name: founding.name.clone(),
            cidr4,
            cidr6: prefix6(founding.cidr6),
            block4,
            admission: founding.admission,
            domain,
            grant_life: founding.grant_life.unwrap_or(GRANT_LIFE),
            created: now,
            salt: founding.salt,
        };
        let genesis = Genesis::parse(&genesis.encode())
            .map_err(|_| usage(Code::Cidr, "these values make no subnet".to_owned()))?;
        let id = genesis.id();
        let records = Records::new(genesis);
        self.check_overlap(&founding.name, &records.prefixes(), &founding.around, Coming::Founded)?;
        let block = records.pools().free_block(&[], None, |_| true)?;
        let interface = self.interface_name(&founding.name, id, &founding.around.links);
        let host = founding.host.unwrap_or_default();
        let local = Local::new(records.genesis.encode(), founding.name, interface, host);
        let mut subnet = Subnet::new(records, local);
        let grant = Grant {
            subject: self.me.peer,
            data_key: self.me.data_key,
            name: founding.member,
            role: Role::Owner,
            generation: 1,
            addresses: block.addresses,
            leases: block.leases,
            seal_key: self.me.seal_key,
            version: 1,
            seat: 0,
            term: Term::Full,
            not_before: now,
            not_after: now.saturating_add(subnet.records.genesis.grant_life),
            labels: BTreeMap::new(),
        };
        subnet.issue(&self.me, Body::Grant(grant))?;
        Ok(subnet)
    }

    /// Whether this node will have the subnet it asks to join: its genesis is judged before anything is asked, so that a
    /// refusal uses nothing up. A subnet that is here already was judged once.
    ///
    /// # Errors
    /// `E-BAD-ANSWER`, `E-SUBNET-EXISTS`, `E-CIDR-OVERLAP`, `E-JOIN-POLICY`.
    pub fn judge_join(&self, join: &PendingJoin, genesis: &[u8], around: &Around) -> Result<Genesis> {
        if Genesis::id_of(genesis) != join.subnet {
            return Err(bad_answer(join, "is about another subnet"));
        }
        let beyond = || {
            let message =
                format!("what the founder of subnet {} chose is no subnet that anybody may have", join.subnet);
            Error::new(Kind::Refused, Code::JoinPolicy, message).hint(Hint::AskInviter)
        };
        let parsed = Genesis::parse(genesis).map_err(|_| beyond())?;
        if self.subnets.contains_key(&join.subnet) {
            return Ok(parsed);
        }
        let alias = join.alias.as_ref().unwrap_or(&parsed.name);
        let target = if join.invite.is_some() { "INVITE".to_owned() } else { join.subnet.to_string() };
        let coming = Coming::Joined { target: &target };
        self.check_alias(alias, coming)?;
        let prefixes = Records::new(parsed.clone()).prefixes();
        let routed = Around { routed: around.routed.clone(), ..Around::default() };
        self.check_overlap(alias, &prefixes, &routed, coming)?;
        policy::judge(&parsed, alias, &target, &join.allow, &around.needs)?;
        Ok(parsed)
    }

    /// Turns an answer to our join into a membership: genesis and records are checked, our grant must be among them.
    ///
    /// # Errors
    /// See [`judge_join`](Self::judge_join); `E-BAD-ANSWER` also where no grant of ours is among the records.
    pub fn accept(
        &self,
        join: &PendingJoin,
        genesis: &[u8],
        records: &[Verified],
        around: &Around,
        now: u64,
    ) -> Result<Subnet> {
        let parsed = self.judge_join(join, genesis, around)?;
        let mut subnet = match self.subnets.get(&join.subnet) {
            Some(old) => old.clone(),
            None => {
                let alias = join.alias.clone().unwrap_or_else(|| parsed.name.clone());
                let interface = self.interface_name(&alias, join.subnet, &around.links);
                let local = Local::new(genesis.to_vec(), alias, interface, join.host.clone());
                Subnet::new(Records::new(parsed), local)
            }
        };
        subnet.local.up = true;
        let known = &subnet.local.hints;
        let hints: Vec<String> = join.hints.iter().filter(|hint| !known.contains(hint)).cloned().collect();
        subnet.local.hints.extend(hints);
        // A revocation is of no use, and not held, before the grant that it ends.
        let mut ordered: Vec<&Verified> = records.iter().collect();
        ordered.sort_by_key(|record| record.rank());
        for record in ordered {
            let _ = subnet.records.absorb(record.clone());
        }
        // Where the clock is wrong, what was signed tells the time.
        let now = if now < RELEASED { now.max(subnet.records.latest()) } else { now };
        let resolved = subnet.resolve(now);
        match resolved.members.get(&self.me.peer) {
            Some(me) if !me.addresses.is_empty() => Ok(subnet),
            _ => Err(match resolved.roll.members.get(&self.me.peer).and_then(|e| e.best()) {
                Some(mine) if !resolved.members.contains_key(&self.me.peer) => clock_error(mine.grant(), now),
                _ => bad_answer(join, "holds no valid grant for this node"),
            }),
        }
    }

    /// This node's own goodbye to a subnet that let it in and that it cannot belong to: none where it was not let in.
    pub fn decline(&self, join: &PendingJoin, genesis: &[u8], records: &[Verified], now: u64) -> Option<Signed> {
        let parsed = Genesis::parse(genesis).ok().filter(|g| g.id() == join.subnet)?;
        let mut held = Records::new(parsed);
        for record in records.iter().cloned() {
            let _ = held.absorb(record);
        }
        let generation = held.grants_of(self.me.peer).map(|g| g.generation).max()?;
        let version = held.doc(self.me.peer).map_or(0, |d| d.version).saturating_add(1);
        let doc = Doc { version, issued: now, left: Some(generation), ..Doc::default() };
        Some(Signed::new(join.subnet, &Body::Doc(doc), &self.me.key))
    }

    /// The question this node asks to join.
    pub fn ask(&self, join: &PendingJoin, proof: Option<super::join::Proof>, now: u64) -> Ask {
        Ask {
            subnet: join.subnet,
            joiner: self.me.peer,
            data_key: self.me.data_key,
            seal_key: self.me.seal_key,
            name: join.name.clone(),
            name_is_default: join.name_is_default,
            ip: join.ip,
            asked: now,
            proof,
        }
    }

    /// Takes records from a peer in; gives the draft to save and those that were new. Records of unknown subnets are
    /// ignored, and `None` says that nothing has changed.
    pub fn take(&self, subnet: SubnetId, records: &[Verified]) -> Option<(Draft, Vec<Verified>)> {
        let held = self.subnets.get(&subnet)?;
        // What is known already costs no copy.
        let mut unknown = records.iter().filter(|r| !held.records.knows(&r.digest())).peekable();
        unknown.peek()?;
        let mut copy = held.clone();
        let (mut news, mut parked) = (Vec::new(), false);
        let mut fresh: Vec<(String, PeerId)> = Vec::new();
        for record in unknown {
            if let Verified::Doc(doc) = record {
                let issuer = record.signed().issuer;
                let before = held.records.doc(issuer).map(claimed).unwrap_or_default();
                fresh.extend(claimed(doc.body()).difference(&before).map(|name| ((*name).to_owned(), issuer)));
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
        let Some(subnet) = self.subnets.get(&id) else { return draft };
        let mut past: Vec<Past> = self.past.iter().filter(|p| p.id != id).cloned().collect();
        // Who was away when this node left hears of it later: its own last word says so.
        let goodbye = || subnet.records.goodbye(self.me.peer).cloned().into_iter().collect();
        let proof = if subnet.records.destroyed() { subnet.records.head_records() } else { goodbye() };
        let (name, genesis) = (subnet.local.alias.clone(), subnet.local.genesis.clone());
        past.push(Past { id, name, proof, genesis, untold: !told });
        let surplus = past.len().saturating_sub(MAX_PAST);
        past.drain(..surplus);
        draft.remember(past);
        draft.remove(id);
        draft
    }

    /// Where members have answered, in whichever subnet.
    pub fn reached(&self) -> BTreeMap<PeerId, Vec<String>> {
        let mut all: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
        for (peer, addresses) in self.subnets.values().flat_map(|s| &s.local.reached) {
            let list = all.entry(*peer).or_default();
            list.extend(addresses.iter().filter(|a| !list.contains(a)).cloned().collect::<Vec<_>>());
        }
        all
    }

    /// All addresses a peer was said to have, from its own documents.
    pub fn endpoints(&self) -> BTreeMap<PeerId, Vec<String>> {
        let mut all: BTreeMap<PeerId, Vec<String>> = BTreeMap::new();
        for subnet in self.subnets.values() {
            for (peer, doc) in subnet.records.docs() {
                let list = all.entry(peer).or_default();
                list.extend(doc.endpoints.iter().filter(|e| !list.contains(e)).cloned().collect::<Vec<_>>());
            }
        }
        all
    }
}

/// What to say of a grant that is valid at another time than this machine's.
fn clock_error(grant: &Grant, now: u64) -> Error {
    let (off, way) = if now < grant.not_before {
        (grant.not_before.saturating_sub(now), "behind")
    } else {
        (now.saturating_sub(grant.not_before), "ahead")
    };
    let message = format!(
        "the clock of this machine, or that of who admits it, is wrong: they differ by {off} s, this one is {way}"
    );
    Error::new(Kind::Failed, Code::Clock, message).hint(Hint::SetClockAndJoin)
}

fn bad_answer(join: &PendingJoin, why: &str) -> Error {
    Error::new(Kind::Failed, Code::BadAnswer, format!("the answer to joining {} {why}", join.subnet))
}

fn no_subnet(text: &str) -> Error {
    Error::new(Kind::NotFound, Code::NoSubnet, format!("no subnet {} here", printable(text))).hint(Hint::ListSubnets)
}

fn read_local(bytes: &[u8]) -> Option<Subnet> {
    let mut local: Local = postcard::from_bytes(bytes).ok()?;
    local.undo_unconfirmed();
    let genesis = Genesis::parse(&local.genesis).ok()?;
    Some(Subnet::new(Records::new(genesis), local))
}
