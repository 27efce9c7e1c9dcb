//! What a peer has for the port goes out; probes to hosts that have not answered are bounded.

use std::net::IpAddr;
use std::time::Instant;

use super::{Direct, Entry, FourTuple, Route};
use crate::model::id::PeerId;
use crate::peer::{Buffers, Pair, Peer};
use crate::udp::Port;

impl Direct {
    /// Does something with one peer, and sends what comes of it.
    pub(super) fn with(&mut self, id: PeerId, run: impl FnOnce(&mut Peer)) {
        if let Some(entry) = self.peers.get_mut(&id) {
            run(&mut entry.peer);
            let (sprays, unproven) = (&mut self.sprays, &mut self.unproven);
            entry.transmit(&self.port, &mut self.buffers, |now, host| {
                let shared = sprays.may_probe(now, host);
                shared.unwrap_or_else(|| unproven.take(host, 1, now))
            });
        }
    }
}

impl Entry {
    /// Sends what the peer has for the port; a probe that the kernel refuses as too large has its answer.
    /// `may_probe` says whether one more probe may go to a host that has not answered.
    fn transmit(
        &mut self,
        port: &Port,
        buffers: &mut Buffers,
        mut may_probe: impl FnMut(Instant, IpAddr) -> bool,
    ) {
        while let Some(transmit) = self.peer.poll_transmit(buffers) {
            let to = transmit.pair.remote;
            if transmit.probe.is_some()
                && to.leg.is_none()
                && !self.peer.has_answered(to)
                && !may_probe(Instant::now(), to.address.ip())
            {
                continue;
            }
            let local = transmit.pair.local;
            let sent = port.send_one_by(to.helper, buffers.frame(), to.address, local);
            if sent.is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
                && let Some(token) = transmit.probe
            {
                self.peer.handle_refused(token);
            }
        }
    }
}

impl From<FourTuple> for Pair {
    fn from(four_tuple: FourTuple) -> Pair {
        Pair {
            local: four_tuple.local,
            remote: four_tuple.from,
        }
    }
}

impl From<crate::peer::Route> for Route {
    fn from(route: crate::peer::Route) -> Route {
        let crate::peer::Route {
            sealer,
            pair,
            payload,
            settled,
        } = route;
        Route {
            sealer,
            to: pair.remote,
            local: pair.local,
            payload,
            settled,
        }
    }
}
