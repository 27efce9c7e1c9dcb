//! What size of IP packet a path carries: found from above by padded probes, with fragmentation forbidden (RFC 8899).

use std::time::{Duration, Instant};

/// Bytes of the IP packet every path must carry (the least MTU of IPv6, RFC 8200 section 5).
pub const BASE: u16 = 1280;
/// The size that is tried first: the MTU of Ethernet.
pub(super) const FIRST: u16 = 1500;
/// The sizes that are tried all at once when that is not answered: PPPoE, tunnels, DSL, other
/// overlays.
const LADDER: [u16; 8] = [FIRST, 1492, 1480, 1452, 1420, 1400, 1360, 1320];
/// The size that is tried when [`FIRST`] is answered.
const JUMBO: u16 = 9000;
/// How often [`JUMBO`] is tried before it is given up.
const JUMBO_TRIES: u8 = 2;
/// Rounds of the ladder: a lost probe is no verdict.
const ROUNDS: u8 = 3;
/// Least time before an unanswered size is tried again.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// The time between two attempts to get above a size smaller than [`FIRST`], in the long run.
pub(super) const RAISE: Duration = Duration::from_secs(60);
/// Parts of that before the first attempts: what made the path narrow may have been a moment's.
const SOONER: [u32; 4] = [12, 6, 3, 2];

/// The search of one path.
#[derive(Debug)]
pub(super) struct Search {
    mtu: u16,
    /// Something of the least size was answered.
    confirmed: bool,
    stage: Stage,
    due: Option<Instant>,
    jumbo: u8,
    /// Attempts to get above the present size.
    raises: usize,
    /// The ladder has been tried to its end since the path is there, or fell.
    settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// So many rounds of the ladder have been sent.
    Ladder(u8),
    Jumbo,
    Rest,
    /// The next size above the present one has been sent: answered, it begins the ladder.
    Raise,
}

impl Search {
    /// A new path; [`FIRST`] has just been probed.
    pub(super) fn new(now: Instant, wait: Duration) -> Search {
        Search {
            mtu: BASE,
            confirmed: false,
            stage: Stage::Ladder(0),
            due: Some(now + wait),
            jumbo: 0,
            raises: 0,
            settled: false,
        }
    }

    /// Bytes of the largest IP packet.
    pub(super) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether that is what the path carries, not only what was tried so far. Larger than [`FIRST`] counts for nothing here.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// When [`step`](Self::step) is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A probe of `size` bytes was answered; whether that raises the MTU.
    pub(super) fn answered(&mut self, now: Instant, size: u16) -> bool {
        self.confirmed |= size >= BASE;
        let raised = size > self.mtu;
        if raised {
            self.mtu = size;
            if self.stage == Stage::Raise {
                self.stage = Stage::Ladder(1);
                self.due = Some(now);
            }
            if size >= FIRST {
                self.settled = true;
                self.due = Some(now);
            }
        }
        raised
    }

    /// Nothing is sent on the path: a larger size is tried later.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.due = Some(now + RAISE);
    }

    /// The interface does not take `size` bytes.
    pub(super) fn refused(&mut self, size: u16) {
        if size > FIRST {
            self.jumbo = JUMBO_TRIES;
        }
    }

    /// Goes back to [`BASE`], with everything to be tried at once.
    pub(super) fn fall(&mut self, now: Instant) {
        self.mtu = BASE;
        self.confirmed = false;
        self.settled = false;
        self.raises = 0;
        self.stage = Stage::Ladder(0);
        self.due = Some(now);
    }

    /// The sizes to probe now; `None` where not even [`BASE`] is answered.
    pub(super) fn step(
        &mut self,
        now: Instant,
        wait: Duration,
        rest: Duration,
    ) -> Option<Vec<u16>> {
        if self.mtu >= FIRST {
            if self.mtu < JUMBO && self.jumbo < JUMBO_TRIES {
                self.jumbo = self.jumbo.saturating_add(1);
                self.stage = Stage::Jumbo;
                self.due = Some(now + wait);
                return Some(vec![JUMBO]);
            }
            self.stage = Stage::Rest;
            self.due = None;
            return Some(vec![]);
        }
        let mtu = self.mtu;
        let mut above = LADDER.into_iter().filter(|size| *size > mtu);
        match self.stage {
            Stage::Ladder(rounds) if rounds < ROUNDS => {
                self.stage = Stage::Ladder(rounds.saturating_add(1));
                self.due = Some(now + wait);
                Some(above.chain((!self.confirmed).then_some(BASE)).collect())
            }
            Stage::Ladder(_) if !self.confirmed => None,
            Stage::Rest => {
                self.raises = self.raises.saturating_add(1);
                self.stage = Stage::Raise;
                self.due = Some(now + wait);
                Some(above.next_back().into_iter().collect())
            }
            Stage::Ladder(_) | Stage::Raise | Stage::Jumbo => {
                self.stage = Stage::Rest;
                self.settled = true;
                self.due = Some(now + rest / SOONER.get(self.raises).copied().unwrap_or(1));
                Some(vec![])
            }
        }
    }
}
