//! Tests of what our NAT lets in, and help for those of others: this carries out what [`Knocks`](crate::peer::knock::Knocks)
//! wants, and knows where members are seen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::{Direct, Origin, entropy};
use crate::link::FourTuple;
use crate::model::id::PeerId;
use crate::peer::knock::{Member, Output};
use crate::peer::path;
use crate::wire::datagram::{Knock, knock};

impl Direct {
    /// Does what is due of the tests.
    pub(super) fn keep_knocks(&mut self, now: Instant) {
        if self.knocks.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        let members: Vec<Member> = self
            .peers
            .iter()
            .filter_map(|(id, entry)| {
                let remote = entry.peer.remote()?;
                let at = match remote.address {
                    SocketAddr::V4(at) if remote.leg.is_none() => Some(at),
                    _ => None,
                };
                let local = entry.local().filter(|_| at.is_some());
                let id = *id;
                Some(Member { id, at, local })
            })
            .collect();
        self.knocks.handle_timeout(now, &members, &mut entropy);
        self.carry_out_knocks(now);
    }

    /// A member says that about a knock.
    pub(super) fn on_knock_word(&mut self, now: Instant, id: PeerId, word: Knock) {
        let sees = match word {
            Knock::Ask { to, .. } => self.sees(now, id, to),
            _ => Vec::new(),
        };
        self.knocks.heard(now, id, word, &sees, &mut entropy);
        self.carry_out_knocks(now);
    }

    /// A knock came whose token was expected.
    pub(super) fn on_knock(&mut self, now: Instant, from: FourTuple, token: u64) {
        let FourTuple { from, .. } = from;
        self.knocks.came(now, token, from.address, from.helper);
        self.carry_out_knocks(now);
    }

    /// At which addresses the member is: where it answers itself, and where relays that are believed see it. None where
    /// nothing may be sent to `to`.
    fn sees(&self, now: Instant, id: PeerId, to: SocketAddr) -> Vec<Ipv4Addr> {
        if path::usable(to, Origin::Told, &self.overlay).is_none() {
            return Vec::new();
        }
        let path = self.peers.get(&id).and_then(|entry| entry.peer.remote());
        let direct = path.filter(|remote| remote.leg.is_none());
        let direct = direct.and_then(|remote| match remote.address.ip().to_canonical() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        });
        let relayed = self.aim(now, id).map(|aim| *aim.ip());
        direct.into_iter().chain(relayed).collect()
    }

    /// Does what the tests want.
    pub(super) fn carry_out_knocks(&mut self, now: Instant) {
        while let Some(output) = self.knocks.poll() {
            match output {
                // A word that is lost is said again, or the test is.
                Output::Say { to, word } => self.with(to, |peer| peer.say_of_knock(word)),
                Output::Open => {
                    let opened = self.port.open_helper();
                    if let Err(error) = &opened {
                        tracing::debug!(%error, "open a socket to test what the NAT lets in");
                    }
                    self.knocks.opened(now, opened.ok());
                }
                Output::Show {
                    helper,
                    to,
                    local,
                    token,
                } => {
                    // Lost: the witness is shown the socket again.
                    let _ = self
                        .port
                        .send_one_by(Some(helper), &knock(token), to.into(), local);
                }
                Output::Close { helper } => self.port.retain_helpers(|number| number != helper),
                Output::Knock {
                    asker,
                    to,
                    token,
                    other_port,
                } => {
                    let sent = self.knock_at(asker, to.into(), token, other_port);
                    tracing::debug!(peer = %asker, %to, other_port, sent, "knock for a member");
                    self.knocks.knocked(asker, token, sent);
                }
                Output::Found {
                    local,
                    filtering,
                    unsure,
                } => {
                    tracing::debug!(?local, ?filtering, ?unsure, "tested what the NAT lets in");
                    if self.own.set_filtering(local, filtering, unsure) {
                        self.tell_all();
                    }
                }
            }
        }
        self.links.0.expected.set(self.knocks.expected(now));
    }

    /// Sends a knock for a member, from the address of ours that it sees; whether that was possible.
    fn knock_at(&self, asker: PeerId, to: SocketAddr, token: u64, other_port: bool) -> bool {
        let local = self.peers.get(&asker).and_then(|entry| {
            let remote = entry.peer.remote()?;
            entry.peer.local_to(remote).filter(IpAddr::is_ipv4)
        });
        if !other_port {
            return self.port.send_one(&knock(token), to, local).is_ok();
        }
        let Ok(helper) = self.port.open_helper() else {
            return false;
        };
        let sent = self
            .port
            .send_one_by(Some(helper), &knock(token), to, local);
        self.port.retain_helpers(|number| number != helper);
        sent.is_ok()
    }
}
