//! What others say: who they are and where they see us (identify), and where they are (the local networks).

use libp2p::identify;
use tokio::time::Instant;

use super::Driver;
use crate::model::id::PeerId;
use crate::p2p::address::may_tell;
use crate::p2p::address_book::Source;
use crate::p2p::{Address, Class, Event, Heard};
use crate::wire::agent::Agent;

/// The most addresses that are believed of one identify message.
const TOLD: usize = 32;

impl Driver {
    pub(super) fn handle_identify(&mut self, event: identify::Event) {
        let identify::Event::Received {
            connection_id,
            info,
            ..
        } = event
        else {
            return;
        };
        let Some(link) = self.links.get_mut(&connection_id) else {
            return;
        };
        let (peer, class) = (link.peer, link.class);
        // Whom this node serves may say what it likes; what is believed comes from members and from relays of ours.
        if class != Class::Member && !self.relays.is_ours(peer) {
            return;
        }
        link.agent = Agent::parse(&info.agent_version);
        let told = info
            .listen_addrs
            .into_iter()
            .take(TOLD)
            .filter_map(|a| Heard::of(a, false))
            .collect::<Vec<_>>();
        let believed = self.believed(&told, Instant::now());
        self.book.heard(peer, &believed, Source::Identify);
        // Through a relay nothing of ours is seen.
        if may_tell(&info.observed_addr, &self.overlay.load()) {
            self.emit(Event::Observed {
                peer,
                address: Address(info.observed_addr),
            });
        }
    }

    /// Somebody on a local network says that a peer is there.
    pub(super) fn handle_on_lan(&mut self, peer: PeerId, heard: Vec<Heard>, now: Instant) {
        if peer == self.me {
            return;
        }
        self.own.refresh(now);
        let overlay = self.overlay.load_full();
        let good = heard.into_iter();
        let good: Vec<Heard> = good.filter(|h| h.may_dial(&overlay, &self.own)).collect();
        if good.is_empty() {
            return;
        }
        for heard in &good {
            self.book.on_lan(peer, &heard.address().0, heard.is_here());
        }
        self.hurry(peer, now);
        self.emit(Event::Discovered {
            peer,
            addresses: good,
        });
    }
}
