//! The machine: every link, every subnet, and what passes between them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::link::{Link, Refused};
use super::offer::{Offer, decode, encode};
use super::schedule::Pace;
use super::{Entropy, Found, Label, LinkIs, MAX_NAMES, MAX_SUBNETS, Message, Said, Source, Wanted};
use crate::crypto::blind::{Blind, RANDOM, SALT};
use crate::model::id::{PeerId, SubnetId};

/// The role of names in questions.
const ASK: u8 = 1;
/// The role of names of answers.
const SAY: u8 = 2;
/// How long a node goes by one name in a subnet: who does not know the ID can follow it for so long, and no longer.
const RENAME: Duration = Duration::from_secs(24 * 3600);
/// Members of a subnet whose answers are enough to ask seldom.
const ENOUGH: usize = 8;
/// The least time between two hurries: connections may be lost again and again.
const HURRY: Duration = Duration::from_secs(5);

/// What was said and heard since the start, and what was dropped, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Questions put, on all links together.
    pub asked: u64,
    /// Messages with answers sent, on all links together.
    pub said: u64,
    /// Messages of others that were looked at.
    pub heard: u64,
    /// Dropped: the source is not on the link.
    pub off_link: u64,
    /// Dropped: an answer by a name of a subnet of ours that cannot be read.
    pub forged: u64,
    /// Dropped: an answer of a source that has its share already.
    pub crowded: u64,
    /// Dropped: an answer without an address of the link.
    pub unusable: u64,
    /// Subnets beyond [`MAX_SUBNETS`], which are neither asked for nor told of, as of now.
    pub left_out: u64,
}

/// A subnet with its keys.
#[derive(Debug)]
struct Subnet {
    keys: Blind,
    others: usize,
    announces: bool,
    /// The name of this node in it, and until when it goes by that.
    name: Option<(Label, Instant)>,
}

impl Subnet {
    fn name(&mut self, now: Instant, entropy: Entropy<'_>) -> Label {
        match self.name {
            Some((label, until)) if now < until => label,
            _ => {
                let label = Label(self.keys.name(SAY, bytes(entropy)));
                self.name = Some((label, now + RENAME));
                label
            }
        }
    }

    fn is_own(&self, label: &Label) -> bool {
        self.name.is_some_and(|(own, _)| own == *label)
    }
}

/// Who is on the local networks; see the [module](super).
#[derive(Debug)]
pub struct Lan {
    me: PeerId,
    pace: Pace,
    subnets: BTreeMap<SubnetId, Subnet>,
    links: BTreeMap<u32, Link>,
    hurried: Option<Instant>,
    counts: Counts,
}

fn bytes<const N: usize>(entropy: Entropy<'_>) -> [u8; N] {
    let mut bytes = [0; N];
    entropy(&mut bytes);
    bytes
}

fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

impl Lan {
    /// A machine without links and subnets.
    pub fn new(me: PeerId, pace: Pace) -> Lan {
        Lan {
            me,
            pace,
            subnets: BTreeMap::new(),
            links: BTreeMap::new(),
            hurried: None,
            counts: Counts::default(),
        }
    }

    /// Takes the subnets of this node, the most important first: those beyond [`MAX_SUBNETS`] are left out. A subnet that is
    /// new, or has members to be found now, is asked for and told of at once.
    pub fn set_subnets(&mut self, now: Instant, wanted: &[Wanted], entropy: Entropy<'_>) {
        let kept = wanted.get(..MAX_SUBNETS).unwrap_or(wanted);
        let left_out = wanted.len().saturating_sub(kept.len());
        self.counts.left_out = u64::try_from(left_out).unwrap_or(u64::MAX);
        let (mut asks, mut tells) = (false, Vec::new());
        for wanted in kept {
            let before = self.subnets.remove(&wanted.subnet);
            let was = before.as_ref().map(|s| (s.others > 0, s.announces));
            let keys = before.map(|subnet| (subnet.keys, subnet.name));
            let Some((keys, name)) =
                keys.or_else(|| Blind::of(wanted.subnet).map(|keys| (keys, None)))
            else {
                continue;
            };
            asks |= wanted.others > 0 && was.is_none_or(|(asked, _)| !asked);
            if wanted.announces && was.is_none_or(|(_, announced)| !announced) {
                tells.push(wanted.subnet);
            }
            let subnet = Subnet {
                keys,
                others: wanted.others,
                announces: wanted.announces,
                name,
            };
            self.subnets.insert(wanted.subnet, subnet);
        }
        let is_kept = |id: SubnetId| kept.iter().any(|wanted| wanted.subnet == id);
        self.subnets.retain(|id, _| is_kept(*id));
        for link in self.links.values_mut() {
            link.retain(&is_kept);
            if asks {
                link.ask.reset(now, entropy);
            }
            for subnet in &tells {
                link.announce(*subnet, now, entropy);
            }
        }
    }

    /// Takes the links of this machine. On one that is new, or has other addresses, is asked and told at once.
    pub fn set_links(&mut self, now: Instant, links: Vec<LinkIs>, entropy: Entropy<'_>) {
        let indexes: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        self.links.retain(|index, _| indexes.contains(index));
        let announced = self.subnets.iter().filter(|(_, subnet)| subnet.announces);
        let announced: Vec<SubnetId> = announced.map(|(id, _)| *id).collect();
        for is in links {
            let known = self.links.entry(is.index);
            let link = match known {
                std::collections::btree_map::Entry::Occupied(entry) if entry.get().is == is => {
                    continue;
                }
                std::collections::btree_map::Entry::Occupied(entry) => {
                    let link = entry.into_mut();
                    link.is = is;
                    link
                }
                std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Link::new(is)),
            };
            link.ask.reset(now, entropy);
            for subnet in &announced {
                link.announce(*subnet, now, entropy);
            }
        }
    }

    /// Takes how often is asked. A question that would come later than after the longest pause comes then.
    pub fn set_pace(&mut self, now: Instant, pace: Pace) {
        if self.pace != pace {
            self.pace = pace;
            for link in self.links.values_mut() {
                link.ask.within(now, pace.max);
            }
        }
    }

    /// There is a reason to look again: everybody of a subnet was lost, or a person waits. Not more often than each 5 s.
    pub fn hurry(&mut self, now: Instant, entropy: Entropy<'_>) {
        if self.hurried.is_some_and(|at| now < at + HURRY) {
            return;
        }
        self.hurried = Some(now);
        for link in self.links.values_mut() {
            link.ask.reset(now, entropy);
        }
    }

    /// When [`Lan::poll`] has something to send; none where it has not.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.links.values().filter_map(Link::due).min()
    }

    /// The next message that is due, with the index of its link.
    pub fn poll(&mut self, now: Instant, entropy: Entropy<'_>) -> Option<(u32, Message)> {
        let due = |link: &&mut Link| link.due().is_some_and(|due| due <= now);
        // A link may have nothing to say after all: then it is not due any more.
        while let Some(link) = self.links.values_mut().find(due) {
            let index = link.is.index;
            let says = link.take_due(now);
            let message = if says.is_empty() {
                self.question(now, index, entropy)
            } else {
                self.answers(now, index, &says, entropy)
            };
            if let Some(message) = message {
                return Some((index, message));
            }
        }
        None
    }

    fn question(&mut self, now: Instant, index: u32, entropy: Entropy<'_>) -> Option<Message> {
        let enough = self.have_enough_answered(now);
        let link = self.links.get_mut(&index)?;
        let mut wanted = Vec::new();
        for subnet in self.subnets.values().filter(|subnet| subnet.others > 0) {
            wanted.push(Label(subnet.keys.name(ASK, bytes::<SALT>(entropy))));
        }
        if wanted.is_empty() {
            link.ask.rest();
            return None;
        }
        link.ask.asked(now, self.pace, enough, entropy);
        link.own.clone_from(&wanted);
        count(&mut self.counts.asked);
        let known = link.known(now);
        Some(Message::Ask { wanted, known })
    }

    fn answers(
        &mut self,
        now: Instant,
        index: u32,
        says: &[SubnetId],
        entropy: Entropy<'_>,
    ) -> Option<Message> {
        let link = self.links.get(&index)?;
        if link.is.places.is_empty() {
            return None;
        }
        let text = encode(&Offer {
            peer: self.me,
            places: link.is.places.clone(),
        });
        let mut said = Vec::new();
        for id in says {
            let subnet = self.subnets.get_mut(id).filter(|subnet| subnet.announces);
            let Some(subnet) = subnet else { continue };
            let label = subnet.name(now, entropy);
            let random = bytes::<RANDOM>(entropy);
            let sealed = subnet.keys.seal(random, &label.0, &text);
            said.extend(sealed.map(|sealed| Said { label, sealed }));
        }
        if said.is_empty() {
            return None;
        }
        count(&mut self.counts.said);
        Some(Message::Say(said))
    }

    /// Whether of every subnet as many were heard as are in it, or as many as anybody needs.
    fn have_enough_answered(&self, now: Instant) -> bool {
        self.subnets.iter().all(|(id, subnet)| {
            let links = self.links.values();
            let peers: BTreeSet<PeerId> = links.flat_map(|link| link.peers(*id, now)).collect();
            peers.len() >= subnet.others.min(ENOUGH)
        })
    }

    /// Takes a message that came in on a link, past the [`Gate`](super::Gate) of its socket, and says whom it tells of.
    pub fn receive(
        &mut self,
        now: Instant,
        index: u32,
        source: Source,
        message: &Message,
        entropy: Entropy<'_>,
    ) -> Vec<Found> {
        let Some(link) = self.links.get_mut(&index) else {
            return Vec::new();
        };
        if !link.is_on(source.address) {
            count(&mut self.counts.off_link);
            return Vec::new();
        }
        match message {
            Message::Ask { wanted, known } => {
                self.asked(now, index, wanted, known, entropy);
                Vec::new()
            }
            Message::Say(said) => self.told(now, index, source, said),
        }
    }

    fn asked(
        &mut self,
        now: Instant,
        index: u32,
        wanted: &[Label],
        known: &[Label],
        entropy: Entropy<'_>,
    ) {
        let enough = self.have_enough_answered(now);
        let Some(link) = self.links.get_mut(&index) else {
            return;
        };
        if wanted.first().is_some_and(|label| link.own.contains(label)) {
            return;
        }
        count(&mut self.counts.heard);
        let wanted = wanted.get(..MAX_NAMES).unwrap_or(wanted);
        let known = known.get(..MAX_NAMES).unwrap_or(known);
        // Whether it stands for our own question (RFC 6762, section 7.3): it asks for all that we want, and nobody keeps silent
        // because the asker knows what we do not.
        let mut stands = true;
        for (id, subnet) in &self.subnets {
            if !wanted.iter().any(|l| subnet.keys.is_named(ASK, &l.0)) {
                stands &= subnet.others == 0;
                continue;
            }
            let is_unknown = |l: &&Label| !link.has_heard(l) && !subnet.is_own(l);
            let of_subnet = |l: &&Label| subnet.keys.is_named(SAY, &l.0);
            stands &= !known.iter().filter(is_unknown).any(|l| of_subnet(&l));
            if subnet.announces && !known.iter().any(|label| subnet.is_own(label)) {
                link.say(*id, now, entropy);
            }
        }
        if stands && link.ask.due().is_some() {
            link.ask.asked(now, self.pace, enough, entropy);
        }
    }

    fn told(&mut self, now: Instant, index: u32, source: Source, said: &[Said]) -> Vec<Found> {
        let mut found = Vec::new();
        let Some(link) = self.links.get_mut(&index) else {
            return found;
        };
        let mut is_ours = false;
        for Said { label, sealed } in said.iter().take(MAX_NAMES) {
            let of = |subnet: &&Subnet| subnet.keys.is_named(SAY, &label.0);
            let named = self.subnets.iter().find(|(_, subnet)| of(subnet));
            let Some((id, subnet)) = named else { continue };
            if subnet.is_own(label) {
                is_ours = true;
                continue;
            }
            let text = subnet.keys.open(&label.0, sealed);
            let Some(offer) = text.and_then(|text| decode(&text)) else {
                count(&mut self.counts.forged);
                continue;
            };
            if offer.peer == self.me {
                is_ours = true;
                continue;
            }
            match link.hear(now, *label, *id, source, offer) {
                Ok(news) => found.extend(news),
                Err(Refused::Crowded) => count(&mut self.counts.crowded),
                Err(Refused::Unusable) => count(&mut self.counts.unusable),
            }
        }
        if !is_ours {
            count(&mut self.counts.heard);
        }
        found
    }

    /// What was said, heard and dropped since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The peers that were heard of and may still be remembered.
    pub fn peers(&self, now: Instant) -> usize {
        let links = || self.links.values();
        let of = |id: SubnetId| links().flat_map(move |link| link.peers(id, now));
        let peers: BTreeSet<PeerId> = self.subnets.keys().flat_map(|id| of(*id)).collect();
        peers.len()
    }
}
