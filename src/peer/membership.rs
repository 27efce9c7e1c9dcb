//! One subnet that the peer is a member of, as we are: the session there, and how far its key is known to be good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::delivery::Delivery;
use super::proof::{Patience, Proof};
use super::session::{self, Indices, Session};
use super::{Config, Event, Route, Up};
use crate::crypto::frame::{LIMIT, Sealer};
use crate::model::id::{PeerId, SubnetId};

/// Control messages taken in a second. A path takes about one, its search a dozen at once; answering costs more than asking.
const CONTROLS: u32 = 128;

pub(super) struct Membership {
    peer_key: [u8; 32],
    pub(super) session: Session,
    pub(super) proof: Proof,
    /// Whether packets arrive under the key in use.
    pub(super) data: Delivery,
    sealer: Option<Arc<Sealer>>,
    /// Control frames sealed with it: what is beyond was traffic.
    controls: u64,
    /// Frames of traffic under the keys before.
    former: u64,
    /// Frames of traffic under this key when it was last seen open: a closed one tells its count no
    /// more.
    sent: u64,
    /// Frames of traffic under all keys when a probe last went out under one.
    traffic_then: u64,
    /// Receiver indices under which frames are accepted; the newest last.
    pub(super) installed: Vec<u32>,
    /// The question whose answer is waited for.
    pub(super) asking: Option<u64>,
    /// How many keys were used so far.
    pub(super) keys: u64,
    /// What the packet threads were last told.
    pub(super) told: Option<Route>,
    /// Control messages taken in the present second.
    taken: Option<(Instant, u32)>,
}

impl Membership {
    pub(super) fn new(
        peer: PeerId,
        subnet: SubnetId,
        peer_key: [u8; 32],
        config: Config,
        indices: Indices,
    ) -> Membership {
        let Config {
            me,
            secret,
            aes,
            post_quantum,
        } = config;
        let config = session::Config {
            me,
            peer,
            subnet,
            secret,
            peer_key,
            aes,
            post_quantum,
        };
        Membership {
            peer_key,
            session: Session::new(config, indices),
            proof: Proof::default(),
            data: Delivery::default(),
            sealer: None,
            controls: 0,
            former: 0,
            sent: 0,
            traffic_then: 0,
            installed: Vec::new(),
            asking: None,
            keys: 0,
            told: None,
            taken: None,
        }
    }

    pub(super) fn peer_key(&self) -> [u8; 32] {
        self.peer_key
    }

    /// The key in use; none while there is none.
    pub(super) fn sealer(&self) -> Option<&Arc<Sealer>> {
        self.sealer.as_ref()
    }

    /// The key in use, for one more control frame.
    pub(super) fn seal(&mut self) -> Option<Arc<Sealer>> {
        let sealer = self.sealer.clone()?;
        self.controls = self.controls.saturating_add(1);
        Some(sealer)
    }

    pub(super) fn seals_with(&self, sealer: &Arc<Sealer>) -> bool {
        self.sealer
            .as_ref()
            .is_some_and(|own| Arc::ptr_eq(own, sealer))
    }

    /// Seals with that key from now on.
    pub(super) fn use_key(&mut self, sealer: Arc<Sealer>) {
        self.former = self.traffic();
        (self.controls, self.sent) = (0, 0);
        self.data.begin();
        self.sealer = Some(sealer);
        self.keys = self.keys.saturating_add(1);
    }

    /// Seals with nothing from now on.
    pub(super) fn close(&mut self) {
        self.former = self.traffic();
        (self.sealer, self.sent) = (None, 0);
        self.data.forget();
        self.proof.forget();
    }

    /// What is to be undone when the session ends.
    pub(super) fn end(&mut self, subnet: SubnetId) -> impl Iterator<Item = Event> + use<> {
        self.close();
        let route = self.told.take().map(|_| Event::Route {
            subnet,
            route: None,
        });
        route.into_iter().chain(
            std::mem::take(&mut self.installed)
                .into_iter()
                .map(|index| Event::Remove { index }),
        )
    }

    /// The newest receiver index.
    pub(super) fn newest(&self) -> Option<u32> {
        self.installed.last().copied()
    }

    /// Remembers what was sent so far. To be called before the session may close its key.
    pub(super) fn count(&mut self) {
        self.sent = self.under_this_key();
    }

    /// Packets go another way from now on: what was lost on the way before says nothing about this one.
    pub(super) fn moved(&mut self) {
        let sent = self.under_this_key();
        self.data.moved(sent);
    }

    /// Frames of traffic sent so far.
    pub(super) fn traffic(&self) -> u64 {
        self.former.saturating_add(self.under_this_key())
    }

    fn under_this_key(&self) -> u64 {
        match &self.sealer {
            Some(sealer) if sealer.used() < LIMIT => sealer.used().saturating_sub(self.controls),
            Some(_) => self.sent,
            None => 0,
        }
    }

    /// Whether one more control message is within the peer's rate.
    pub(super) fn may_tell(&mut self, now: Instant) -> bool {
        let (since, taken) = self.taken.unwrap_or((now, 0));
        let (since, taken) = if now.saturating_duration_since(since) >= Duration::from_secs(1) {
            (now, 0)
        } else {
            (since, taken)
        };
        let taken = taken.saturating_add(1);
        self.taken = Some((since, taken));
        taken <= CONTROLS
    }

    /// How well the key suits for the next probe; the least is taken.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        let is_idle = self.traffic() == self.traffic_then;
        (
            !self.proof.is_proven(),
            self.proof.unanswered(),
            is_idle,
            self.proof.asked_at(),
        )
    }

    /// A probe goes out under the key.
    pub(super) fn asked(
        &mut self,
        now: Instant,
        token: u64,
        is_small: bool,
        patience: Option<Patience>,
    ) {
        self.traffic_then = self.traffic();
        self.data.probed(token, self.under_this_key());
        self.proof.asked(now, token, is_small, patience);
    }

    /// How packets travel: on the path, once the peer is known to have the key.
    pub(super) fn route(&self, up: Option<Up>) -> Option<Route> {
        let (
            Some(sealer),
            Some(Up {
                pair,
                payload,
                settled,
            }),
        ) = (&self.sealer, up)
        else {
            return None;
        };
        self.proof.is_proven().then(|| Route {
            sealer: Arc::clone(sealer),
            pair,
            payload,
            settled,
        })
    }
}
