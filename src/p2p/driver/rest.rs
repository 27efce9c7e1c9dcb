//! Connections over which nothing travels: they are asked seldom whether they are alive, and at once when somebody wants
//! them.
//!
//! A connection rests when it is the only one of its peer, and nothing has been wanted of it for half a minute. Then the pause
//! between two pings is as long as NATs let it be, and one end's are enough for both. What ends the rest has it asked at once:
//! packets, another connection of the peer, doubt, a question that is not answered soon. Then it must be heard soon, else it is
//! closed. So a connection that ended without a word is noticed a little later than one in use, but not later by whoever needs
//! it.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use super::Driver;
use super::links::Link;
use crate::model::id::PeerId;
use crate::p2p::address::Carrier;
use crate::p2p::{Class, Timing};

/// How long a question to a peer whose connection rests may go without an answer before the connection is asked.
const ASKED: Duration = Duration::from_millis(1500);

/// What is known of a connection's use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Use {
    carrier: Carrier,
    /// When anything was wanted of it last.
    last: Instant,
    rests: bool,
    /// When its rest ended, where nothing was heard since.
    woken: Option<Instant>,
    /// When the peer was asked something, where nothing was heard since.
    asked: Option<Instant>,
}

impl Use {
    /// A connection that is made now.
    pub(super) fn new(carrier: Carrier, now: Instant) -> Use {
        Use {
            carrier,
            last: now,
            rests: false,
            woken: None,
            asked: None,
        }
    }

    /// Something is wanted of it.
    pub(super) fn want(&mut self, now: Instant) {
        self.last = now;
    }

    /// A sign of life came.
    pub(super) fn hear(&mut self) {
        (self.woken, self.asked) = (None, None);
    }

    /// Whether a connection that was heard last at `heard` counts as dead.
    pub(super) fn is_silent(&self, now: Instant, heard: Instant, timing: &Timing) -> bool {
        let (since, patience) = match self.woken {
            Some(woken) => (woken, timing.silence / 2),
            None if self.rests => (heard, timing.dead_of(self.carrier)),
            None => (heard, timing.silence),
        };
        now.saturating_duration_since(since) >= patience
    }

    /// Sees whether it rests from now on: `may` says whether all else lets it. Whether that has changed.
    fn turn(&mut self, now: Instant, may: bool, timing: &Timing) -> bool {
        if self.rests && self.asked.is_some_and(|at| now >= at + ASKED) {
            self.asked = None;
            self.want(now);
        }
        let rests = may && now >= self.last + timing.rest_after;
        if self.rests && !rests {
            self.woken = Some(now);
        }
        std::mem::replace(&mut self.rests, rests) != rests
    }
}

impl Driver {
    /// Something is wanted of a peer's connections.
    pub(super) fn want(&mut self, peer: PeerId, now: Instant) {
        let links = self.links.values_mut();
        links
            .filter(|link| link.peer == peer)
            .for_each(|link| link.used.want(now));
    }

    /// A question went to the peer.
    pub(super) fn asked(&mut self, peer: PeerId, now: Instant) {
        for link in self.links.values_mut().filter(|link| link.peer == peer) {
            link.used.asked.get_or_insert(now);
        }
    }

    /// Sees which connections rest from now on, and which do no more.
    pub(super) fn keep_rest(&mut self, now: Instant) {
        let timing = self.config.timing;
        let mut connections: BTreeMap<PeerId, usize> = BTreeMap::new();
        for link in self.links.values().filter(|link| !link.closing) {
            *connections.entry(link.peer).or_default() += 1;
        }
        let data = &self.swarm.behaviour().members.inner.data;
        let mut changed: Vec<(ConnectionId, PeerId, Carrier, bool)> = Vec::new();
        let asked = |link: &&mut Link| link.class <= Class::Meeting && !link.closing;
        for (id, link) in self.links.iter_mut() {
            let Some(link) = Some(link).filter(asked) else {
                continue;
            };
            if link.class == Class::Member && data.take_moved(*id) {
                link.used.want(now);
                link.busy = now;
            }
            let is_alone = connections.get(&link.peer) == Some(&1);
            // Without an answer to the first ping it is not known to work.
            let is_sound = link.rtt.is_some() && !link.one_sided && !link.doubted;
            let may = is_alone && is_sound && link.retire.is_none() && link.asked.is_none();
            if link.used.turn(now, may, &timing) {
                changed.push((*id, link.peer, link.carrier, link.used.rests));
            }
        }
        let pings = &mut self.swarm.behaviour_mut().meeting.inner.ping;
        for (id, peer, carrier, rests) in changed {
            if let Some(lib) = crate::p2p::peer_to_lib(peer) {
                let every = if rests {
                    timing.rest_of(carrier)
                } else {
                    timing.ping
                };
                // Of relays the round trip is to stay known.
                let meets = self.relays.is_ours(peer) || self.shares.holds(peer);
                pings.pace(lib, id, every, rests && !meets);
                if !rests {
                    pings.ask(lib, id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_woken_has_little_time_and_one_that_rests_has_much() {
        let (start, timing) = (Instant::now(), Timing::default());
        let second = Duration::from_secs(1);
        let mut used = Use::new(Carrier::Quic, start);
        let mut now = start + timing.rest_after;
        assert!(!used.turn(now, false, &timing) && used.turn(now, true, &timing));
        assert!(!used.is_silent(now + timing.rest, now, &timing));
        assert!(used.is_silent(now + timing.dead, now, &timing));
        // A question that is answered soon wakes nobody.
        used.asked = Some(now);
        used.hear();
        now += timing.rest;
        assert!(!used.turn(now, true, &timing));
        used.asked = Some(now);
        assert!(!used.turn(now + second, true, &timing));
        now += 2 * second;
        assert!(used.turn(now, true, &timing) && !used.rests);
        let heard = start;
        assert!(!used.is_silent(now + 5 * second, heard, &timing));
        assert!(used.is_silent(now + 6 * second, heard, &timing));
        used.hear();
        assert!(!used.is_silent(now + 6 * second, now, &timing));
    }

    #[test]
    fn a_tcp_connection_that_rests_is_asked_half_as_often_and_given_as_much_more_time() {
        let (start, timing) = (Instant::now(), Timing::default());
        let mut used = Use::new(Carrier::Tcp, start);
        let now = start + timing.rest_after;
        assert!(used.turn(now, true, &timing));
        assert_eq!(timing.rest_of(Carrier::Tcp), 2 * timing.rest);
        assert!(!used.is_silent(now + timing.dead + timing.rest / 2, now, &timing));
        assert!(used.is_silent(now + timing.dead + timing.rest, now, &timing));
        for carrier in [Carrier::Quic, Carrier::Web, Carrier::Relay] {
            assert_eq!(
                timing.rest_of(carrier),
                timing.rest,
                "what is in between forgets"
            );
        }
        // What an admin sets above a minute holds for all.
        let seldom = Timing {
            rest: Duration::from_secs(300),
            dead: Duration::from_secs(400),
            ..timing
        };
        assert_eq!(seldom.rest_of(Carrier::Tcp), seldom.rest);
        assert_eq!(seldom.dead_of(Carrier::Tcp), seldom.dead);
    }
}
