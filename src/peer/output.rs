//! What a peer wants done: the wishes of its sessions and paths become events and sealed datagrams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::membership::Membership;
use super::path::{self, Cause, Origin, Output};
use super::session::Action;
use super::{Entropy, Event, Pair, Peer, Remote, Up};
use crate::crypto::frame::Sealer;
use crate::model::id::SubnetId;
use crate::wire::datagram::{Control, Knock, OVERHEAD, Spray, Trailer};
use crate::wire::relay;
use crate::wire::relay::{MESSAGE, PREFIX};

/// The most keys that are asked in one round. Those of many subnets at once would push the path's
/// own probes out of what it remembers.
const KEYS_AT_ONCE: usize = 16;
/// The time from one such round of [`KEYS_AT_ONCE`] keys to the next.
const KEYS_APART: Duration = Duration::from_millis(100);

/// A datagram to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where it leaves from and goes to.
    pub pair: Pair,
    /// The probe's token, where it is one: for [`Peer::handle_refused`].
    pub probe: Option<u64>,
}

/// The buffers that frames are put together in. Several peers can share them.
#[derive(Debug, Default)]
pub struct Buffers {
    body: Vec<u8>,
    frame: Vec<u8>,
    length: usize,
}

impl Buffers {
    /// The datagram of the last [`Transmit`]: the frame, behind the index of our leg where it goes to a relay.
    pub fn frame(&self) -> &[u8] {
        self.frame.get(..self.length).unwrap_or_default()
    }
}

/// What goes out in a control frame.
#[derive(Debug)]
pub(super) enum Message {
    Probe {
        token: u64,
        pad_to: usize,
    },
    /// A probe to where the peer may be by chance.
    Guess {
        token: u64,
    },
    Spray(Spray),
    Knock(Knock),
    Answer {
        token: u64,
        arrived: u64,
    },
    Session(Vec<u8>),
    Renewed(SocketAddr),
    Close,
}

/// A control frame that waits to be sealed.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) sealer: Arc<Sealer>,
    pub(super) pair: Pair,
    pub(super) message: Message,
}

impl Peer {
    /// Asks under the keys that have to be asked, and gives up those that were not answered.
    pub(super) fn ask_keys(&mut self, now: Instant, entropy: Entropy<'_>) {
        let subnets: Vec<SubnetId> = self.memberships.keys().copied().collect();
        let mut left = if self.keys_at.is_some_and(|at| now < at) {
            0
        } else {
            KEYS_AT_ONCE
        };
        for subnet in subnets {
            let Some(patience) = self.paths.patience() else {
                return;
            };
            let Some(membership) = self.memberships.get_mut(&subnet) else {
                continue;
            };
            if membership.sealer().is_none() {
                continue;
            }
            if membership.proof.has_failed(now, patience) {
                membership.session.path_lost(now, entropy);
                self.pump(now, None, entropy);
            } else if left > 0
                && membership.proof.asks(now)
                && self.paths.ping(now, entropy).is_some()
            {
                left = left.saturating_sub(1);
                if left == 0 {
                    self.keys_at = Some(now + KEYS_APART);
                }
                self.pump(now, Some(subnet), entropy);
            }
        }
    }

    /// The next datagram to be sent: its bytes are in `buffers`.
    pub fn poll_transmit(&mut self, buffers: &mut Buffers) -> Option<Transmit> {
        loop {
            let Waiting {
                sealer,
                pair,
                message,
            } = self.waiting.pop_front()?;
            let (control, pad_to) = match &message {
                Message::Probe { token, pad_to } => (Control::Probe { token: *token }, *pad_to),
                Message::Guess { token } => (Control::Probe { token: *token }, 0),
                Message::Spray(word) => (Control::Spray(*word), 0),
                Message::Knock(word) => (Control::Knock(*word), 0),
                Message::Answer { token, arrived } => (
                    Control::Answer {
                        token: *token,
                        seen: pair.remote.address,
                        arrived: *arrived,
                    },
                    0,
                ),
                Message::Session(message) => (Control::Rekey(message), 0),
                Message::Renewed(address) => (Control::Renewed { address: *address }, 0),
                Message::Close => (Control::Close, 0),
            };
            // A relay asks who sends from a new address only where its question is no larger than what came.
            let least = pair.remote.leg.map_or(0, |_| MESSAGE - PREFIX);
            let pad_to = pad_to.max(least).saturating_sub(OVERHEAD);
            if !control.encode(pad_to, &mut buffers.body) {
                continue;
            }
            // The key may have ended since.
            let Some(nonce) = sealer.take(1).and_then(|mut nonces| nonces.next()) else {
                continue;
            };
            buffers.frame.clear();
            if let Some(leg) = pair.remote.leg {
                buffers.frame.extend_from_slice(&relay::prefix(leg));
            }
            let prefix = buffers.frame.len();
            let most = prefix.saturating_add(buffers.body.len().saturating_add(OVERHEAD));
            buffers.frame.resize(most, 0);
            let sealed = sealer.seal(
                nonce,
                &buffers.body,
                &Trailer::Control.encode(),
                buffers.frame.get_mut(prefix..).unwrap_or_default(),
            );
            let Some(length) = sealed else { continue };
            buffers.length = prefix.saturating_add(length);
            let probe = if let Message::Probe { token, .. } = message {
                Some(token)
            } else {
                None
            };
            return Some(Transmit { pair, probe });
        }
    }

    /// Takes over what the sessions and the paths want. Probes and answers go out under the key of `under`, where it has
    /// one.
    pub(super) fn pump(&mut self, now: Instant, under: Option<SubnetId>, entropy: Entropy<'_>) {
        loop {
            let subnets: Vec<SubnetId> = self.memberships.keys().copied().collect();
            for subnet in subnets {
                self.obey(now, subnet);
            }
            let Some(output) = self.paths.poll() else {
                break;
            };
            match output {
                Output::Probe {
                    pair,
                    token,
                    pad_to,
                } => self.send_probe(now, under, pair, token, pad_to),
                Output::Answer { pair, token } => {
                    let arrived = self.arrived;
                    self.send(under, pair, Message::Answer { token, arrived });
                }
                Output::Up {
                    pair,
                    payload,
                    settled,
                } => {
                    if self.up.map(|up| up.pair) != Some(pair) {
                        self.memberships.values_mut().for_each(Membership::moved);
                    }
                    if self.up.is_none() {
                        // Each key is asked for at once: it is used when it is answered.
                        self.memberships
                            .values_mut()
                            .for_each(|membership| membership.proof.ask(now));
                    }
                    let before = self.direct();
                    self.up = Some(Up {
                        pair,
                        payload,
                        settled,
                    });
                    self.report_direct(before);
                }
                Output::Fresh => self.events.push_back(Event::Fresh),
                Output::Renewed { pair, address } => {
                    self.send(under, pair, Message::Renewed(address));
                }
                Output::Lost => {
                    let before = self.direct();
                    self.up = None;
                    self.report_direct(before);
                    for membership in self.memberships.values_mut() {
                        membership.proof.forget();
                        if membership.sealer().is_some() {
                            membership.session.path_lost(now, entropy);
                        }
                    }
                }
            }
        }
        self.publish();
    }

    /// Where packets go straight to the peer, from the port's own socket: a NAT may not let in there what leaves from a helper.
    fn direct(&self) -> Option<SocketAddr> {
        let remote = self.up.map(|up| up.pair.remote)?;
        (remote.leg.is_none() && remote.helper.is_none()).then_some(remote.address)
    }

    /// Says what has become of the direct path since it led to `before`.
    fn report_direct(&mut self, before: Option<SocketAddr>) {
        let now = self.direct();
        let last = self.paths.history().last().map(|change| change.cause);
        // A helper socket takes no connections, and the mapping that is left lives for a while.
        if now == before || last == Some(Cause::Aged) {
            return;
        }
        // Where packets are lost and probes pass, other things that use the ports are well, and the stream has to carry.
        let is_well = matches!(last, Some(Cause::DataLost | Cause::Thin));
        match now {
            Some(address) => self.events.push_back(Event::Direct { address }),
            None if is_well && self.up.is_none() => self.events.push_back(Event::DataLost),
            None if is_well => {}
            None => self.events.push_back(Event::DirectLost),
        }
    }

    /// Does what the session of one subnet wants.
    fn obey(&mut self, now: Instant, subnet: SubnetId) {
        let Some(membership) = self.memberships.get_mut(&subnet) else {
            return;
        };
        while let Some(action) = membership.session.poll_action() {
            match action {
                Action::Ask(message) => {
                    self.asked = self.asked.wrapping_add(1);
                    let number = self.asked;
                    membership.asking = Some(number);
                    self.events.push_back(Event::Ask {
                        subnet,
                        number,
                        message,
                    });
                }
                Action::Send(message) => {
                    if let (Some(up), Some(sealer)) = (self.up, membership.seal()) {
                        self.waiting.push_back(Waiting {
                            sealer,
                            pair: up.pair,
                            message: Message::Session(message),
                        });
                    }
                }
                Action::Install { index, opener } => {
                    membership.installed.push(index);
                    self.events.push_back(Event::Install {
                        subnet,
                        index,
                        opener,
                    });
                }
                Action::Remove { index } => {
                    membership.installed.retain(|installed| *installed != index);
                    self.events.push_back(Event::Remove { index });
                }
                Action::Use(sealer) => {
                    membership.use_key(sealer);
                    // What stayed unanswered was asked under another key; without a path it waits for one.
                    membership.proof.ask(now);
                    self.paths.start(now);
                }
                Action::Stop => {
                    membership.close();
                    self.pause(now);
                    return self.obey(now, subnet);
                }
            }
        }
    }

    /// Stops the probing where no subnet has a key.
    pub(super) fn pause(&mut self, now: Instant) {
        if self
            .memberships
            .values()
            .all(|membership| membership.sealer().is_none())
        {
            self.paths.stop(now);
            while self.paths.poll().is_some() {}
            self.up = None;
        }
    }

    /// The subnet whose key carries the next probe: one whose key is known to be good, then one with traffic, then the one
    /// whose turn it is.
    fn carrier(&self) -> Option<SubnetId> {
        let usable = self
            .memberships
            .iter()
            .filter(|(_, membership)| membership.sealer().is_some());
        usable
            .min_by_key(|(_, membership)| membership.rank())
            .map(|(subnet, _)| *subnet)
    }

    fn send_probe(
        &mut self,
        now: Instant,
        under: Option<SubnetId>,
        pair: Pair,
        token: u64,
        pad_to: usize,
    ) {
        let can = |subnet: &SubnetId| {
            self.memberships
                .get(subnet)
                .is_some_and(|m| m.sealer().is_some())
        };
        let Some(subnet) = under.filter(can).or_else(|| self.carrier()) else {
            return;
        };
        if let Some(membership) = self.memberships.get_mut(&subnet) {
            membership.asked(now, token, pad_to == 0, self.paths.patience());
        }
        self.send(Some(subnet), pair, Message::Probe { token, pad_to });
    }

    fn send(&mut self, under: Option<SubnetId>, pair: Pair, message: Message) {
        let can = |subnet: &SubnetId| {
            self.memberships
                .get(subnet)
                .is_some_and(|m| m.sealer().is_some())
        };
        let Some(subnet) = under.filter(can).or_else(|| self.carrier()) else {
            return;
        };
        if let Some(sealer) = self.memberships.get_mut(&subnet).and_then(Membership::seal) {
            self.waiting.push_back(Waiting {
                sealer,
                pair,
                message,
            });
        }
    }

    /// Says that to the peer on the path in use; nothing where there is none.
    pub fn say(&mut self, word: Spray) {
        if let Some(up) = self.up {
            self.send(None, up.pair, Message::Spray(word));
        }
    }

    /// Says that about a knock to the peer on the path in use; nothing where there is none.
    pub fn say_of_knock(&mut self, word: Knock) {
        if let Some(up) = self.up {
            self.send(None, up.pair, Message::Knock(word));
        }
    }

    /// Sends a probe to where the peer may be by chance. Its answer is not waited for: whoever is met probes by itself.
    pub fn guess(&mut self, to: Remote, entropy: Entropy<'_>) {
        let mut token = [0; 8];
        entropy(&mut token);
        let token = u64::from_be_bytes(token);
        if let Some(address) = path::usable(to.address, Origin::Told, &self.overlay) {
            let pair = Pair {
                local: None,
                remote: Remote { address, ..to },
            };
            self.send(None, pair, Message::Guess { token });
        }
    }

    /// Helper sockets were closed: those that `gone` names. A path by one of them is lost.
    pub fn drop_helpers(&mut self, now: Instant, gone: impl Fn(u16) -> bool, entropy: Entropy<'_>) {
        self.paths.drop_helpers(now, gone);
        self.pump(now, None, entropy);
    }

    /// Tells each subnet how its packets travel, where that changed.
    pub(super) fn publish(&mut self) {
        for (subnet, membership) in &mut self.memberships {
            let route = membership.route(self.up);
            if route != membership.told {
                membership.told.clone_from(&route);
                self.events.push_back(Event::Route {
                    subnet: *subnet,
                    route,
                });
            }
        }
    }
}
