//! Which handshakes are begun: places that sources share, kept for members by where they were last seen.
//!
//! TCP and QUIC have a table each, so that half-open connections of the one take no place of the other.
//!
//! A QUIC source that has answered a Retry is *proven*: it receives what is sent to its address, as every TCP client
//! does. Unproven handshakes may take half of a source's places and [`UNPROVEN`] of all, and nobody else's, so that
//! forged sources can neither fill the table nor shut out the address they name.
//!
//! A stream tells how far it has got ([`reached`]): who has said nothing gives way first and soonest. All who come over
//! loopback may be behind a reverse proxy of this machine, so that they have the places of all sources.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use libp2p::Multiaddr;
use libp2p::core::transport::Boxed;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::address::ip_of;
use super::layer::{Layer, Layered, Making};
use crate::model::id::PeerId;
use crate::model::source::{Places, Sizes, Source, Step, Taken, Whereabouts};

/// Unproven handshakes in all, above which every other one has to answer a Retry first.
const UNPROVEN: usize = 32;
/// A handshake has at least this long before another may take its place.
const SETTLED: Duration = Duration::from_secs(1);
/// The same for a stream that has not begun its handshake: time for the round trip to a far client.
const QUIET: Duration = Duration::from_millis(500);

tokio::task_local! {
    /// The place of the stream whose handshake this task is at.
    static PLACE: (Admission, u64);
}

/// Notes how far the stream has got whose handshake this task is at; nothing where it needs no place.
pub(super) fn reached(step: Step) {
    // Who is not at a handshake has no place to keep.
    let _ = PLACE.try_with(|(admission, number)| {
        let mut pending = admission.lock();
        pending.places.reach(*number, step, Instant::now());
    });
}

/// What became of handshakes for which there was no room, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HandshakeCounts {
    /// Streams that came in and were not taken.
    pub streams_refused: u64,
    /// Streams whose place went to another before they had ended their handshake.
    pub streams_ended: u64,
    /// First packets of QUIC that got no answer.
    pub quic_refused: u64,
    /// QUIC handshakes whose place went to another.
    pub quic_ended: u64,
    /// When the last one of them was.
    pub last: Option<Instant>,
}

/// The counts of both tables. Cheap to clone, all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Losses(Arc<Mutex<HandshakeCounts>>);

impl Losses {
    pub(super) fn counts(&self) -> HandshakeCounts {
        *self.0.lock()
    }
}

/// Where members were last seen; cheap to clone, all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen(Arc<Mutex<Whereabouts>>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Whereabouts> {
        self.0.lock()
    }

    pub(super) fn see(&self, member: PeerId, address: IpAddr) {
        self.lock().see(member, address);
    }

    pub(super) fn say(&self, announcements: BTreeMap<PeerId, Vec<IpAddr>>) {
        self.lock().say(announcements);
    }

    pub(super) fn member_at(&self, address: IpAddr) -> Option<PeerId> {
        self.lock().member_at(address)
    }
}

/// The handshakes under way, and the places that they hold.
#[derive(Debug)]
struct Pending {
    places: Places<u64>,
    next: u64,
    unproven: usize,
    /// Ends the handshake of a place.
    ends: HashMap<u64, oneshot::Sender<()>>,
}

/// What the handshakes of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Streams,
    Quic,
}

/// Decides on handshakes, and counts them. Cheap to clone, all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    pending: Arc<Mutex<Pending>>,
    seen: Seen,
    losses: Losses,
    per_source: usize,
    kind: Kind,
}

/// A place among the handshakes under way, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Admission,
    number: u64,
    proven: bool,
    ended: oneshot::Receiver<()>,
}

/// What becomes of a first packet.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Begin the handshake, holding the place until it has ended.
    Begin(Place),
    /// Let the source prove its address first; nothing is kept.
    Prove,
    /// No answer: the client tries again, when there may be room.
    Ignore,
}

impl Admission {
    /// The table of QUIC.
    pub(super) fn new(per_source: usize, all: usize, seen: Seen, losses: Losses) -> Self {
        let sizes = Sizes::shared(all, per_source, SETTLED);
        Admission::with(sizes, Kind::Quic, seen, losses)
    }

    /// The table of streams, which tell how far they have got.
    pub(super) fn of_streams(per_source: usize, all: usize, seen: Seen, losses: Losses) -> Self {
        let shared = Sizes::shared(all, per_source, SETTLED).with_all_for_loopback();
        let sizes = Sizes {
            quiet: Some(QUIET),
            ..shared
        };
        Admission::with(sizes, Kind::Streams, seen, losses)
    }

    fn with(sizes: Sizes, kind: Kind, seen: Seen, losses: Losses) -> Self {
        let pending = Pending {
            places: Places::new(sizes),
            next: 0,
            unproven: 0,
            ends: HashMap::new(),
        };
        Admission {
            pending: Arc::new(Mutex::new(pending)),
            seen,
            losses,
            per_source: sizes.per_source,
            kind,
        }
    }

    /// Counts a handshake that was refused, or one that was ended for another.
    fn lose(&self, is_ended: bool, now: Instant) {
        let mut losses = self.losses.0.lock();
        losses.last = Some(now);
        let count = match (self.kind, is_ended) {
            (Kind::Streams, false) => &mut losses.streams_refused,
            (Kind::Streams, true) => &mut losses.streams_ended,
            (Kind::Quic, false) => &mut losses.quic_refused,
            (Kind::Quic, true) => &mut losses.quic_ended,
        };
        *count = count.saturating_add(1);
    }

    pub(super) fn judge(&self, address: IpAddr, proven: bool, now: Instant) -> Verdict {
        // Who only says where it is has no claim to what is kept for the member there.
        let member = if proven {
            self.seen.member_at(address)
        } else {
            None
        };
        let mut pending = self.lock();
        let same = pending.places.held_by(Source::of(address));
        let many = same >= self.per_source.div_ceil(2) || pending.unproven >= UNPROVEN;
        if !proven && (many || !pending.places.has_room(Source::of(address))) {
            return if self.per_source == 0 {
                Verdict::Ignore
            } else {
                Verdict::Prove
            };
        }
        let number = pending.next;
        match pending
            .places
            .take(number, Source::of(address), member, now)
        {
            Taken::Full => {
                self.lose(false, now);
                return Verdict::Ignore;
            }
            Taken::Free => {}
            Taken::Instead(other) => {
                self.lose(true, now);
                if let Some(end) = pending.ends.remove(&other) {
                    // Its handshake may have ended by itself at this moment.
                    let _ = end.send(());
                }
            }
        }
        let (end, ended) = oneshot::channel();
        pending.next = number.wrapping_add(1);
        pending.ends.insert(number, end);
        pending.unproven += usize::from(!proven);
        drop(pending);
        Verdict::Begin(Place {
            admission: self.clone(),
            number,
            proven,
            ended,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock()
    }
}

impl Place {
    /// Waits for the handshake as long as the place is not lost to another; `None` where it is.
    pub(super) async fn hold<T>(mut self, handshake: impl Future<Output = T>) -> Option<T> {
        let handshake = PLACE.scope((self.admission.clone(), self.number), handshake);
        let ended = &mut self.ended;
        tokio::select! {
            done = handshake => Some(done),
            _ = ended => None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut pending = self.admission.lock();
        pending.ends.remove(&self.number);
        pending.places.give_back(self.number);
        pending.unproven = pending.unproven.saturating_sub(usize::from(!self.proven));
    }
}

/// A transport whose incoming handshakes need a place.
pub(super) struct Admitting<T> {
    inner: Boxed<T>,
    admission: Admission,
}

impl<T> Admitting<T> {
    pub(super) fn around(inner: Boxed<T>, admission: Admission) -> Layered<Self> {
        Layered(Admitting { inner, admission })
    }
}

impl<T: Send + 'static> Layer for Admitting<T> {
    type Output = T;

    fn inner(&mut self) -> &mut Boxed<T> {
        &mut self.inner
    }

    fn take_in(&mut self, from: &Multiaddr, handshake: Making<T>) -> Option<Making<T>> {
        let Some(address) = ip_of(from) else {
            return Some(handshake);
        };
        let Verdict::Begin(place) = self.admission.judge(address, true, Instant::now()) else {
            tracing::debug!(remote = %from, "too many unfinished connections");
            return None;
        };
        let held = async move {
            place.hold(handshake).await.unwrap_or_else(|| {
                let why = "its place went to another";
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why))
            })
        };
        Some(held.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new(8, 256, Seen::default(), Losses::default())
    }

    fn begin(admission: &Admission, source: [u8; 4], proven: bool) -> Option<Place> {
        match admission.judge(source.into(), proven, Instant::now()) {
            Verdict::Begin(place) => Some(place),
            Verdict::Prove | Verdict::Ignore => None,
        }
    }

    #[test]
    fn forged_sources_leave_room_for_those_that_prove_their_address() {
        let admission = admission();
        let flood: Vec<_> = (0..1000u32)
            .map(|n| begin(&admission, n.to_be_bytes(), false))
            .collect();
        assert_eq!(flood.iter().flatten().count(), UNPROVEN);
        assert!(matches!(
            admission.judge([192, 0, 2, 1].into(), false, Instant::now()),
            Verdict::Prove
        ));
        assert!(begin(&admission, [192, 0, 2, 1], true).is_some());
        drop(flood);
        assert!(begin(&admission, [192, 0, 2, 1], false).is_some());
    }

    #[test]
    fn forged_packets_do_not_shut_out_the_address_they_name() {
        let admission = admission();
        let forged: Vec<_> = (0..100)
            .filter_map(|_| begin(&admission, [192, 0, 2, 1], false))
            .collect();
        assert_eq!(forged.len(), 4);
        let own: Vec<_> = (0..100)
            .filter_map(|_| begin(&admission, [192, 0, 2, 1], true))
            .collect();
        assert_eq!(own.len(), 4);
        assert!(matches!(
            admission.judge([192, 0, 2, 1].into(), true, Instant::now()),
            Verdict::Ignore
        ));
        assert!(begin(&admission, [192, 0, 2, 2], false).is_some());
    }

    #[test]
    fn handshakes_are_bounded_and_nothing_of_a_past_one_is_kept() {
        let admission = admission();
        let all: Vec<_> = (0..1000u32)
            .filter_map(|n| begin(&admission, n.to_be_bytes(), true))
            .collect();
        assert_eq!(all.len(), 192, "a quarter is kept for members");
        assert!(begin(&admission, [192, 0, 2, 1], true).is_none());
        drop(all);
        let pending = admission.lock();
        assert_eq!(
            (pending.places.len(), pending.unproven, pending.ends.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_flood_leaves_the_places_of_members() {
        let admission = admission();
        let member = PeerId([7; 32]);
        admission
            .seen
            .say([(member, vec!["2001:db8::b".parse().unwrap()])].into());
        let flood: Vec<_> = (0..1000u32)
            .filter_map(|n| begin(&admission, n.to_be_bytes(), true))
            .collect();
        // At one moment: what comes back with time is not what this is about.
        let now = Instant::now();
        let crowd: Vec<_> = (0..1000u32)
            .filter_map(|n| {
                let address = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0xbad, n as u16]);
                match admission.judge(address, true, now) {
                    Verdict::Begin(place) => Some(place),
                    _ => None,
                }
            })
            .collect();
        assert_eq!((flood.len(), crowd.len()), (192, 0));
        let home = "2001:db8::b".parse().unwrap();
        assert!(matches!(
            admission.judge(home, true, Instant::now()),
            Verdict::Begin(_)
        ));
        assert!(
            !matches!(
                admission.judge(home, false, Instant::now()),
                Verdict::Begin(_)
            ),
            "forged"
        );
    }

    #[tokio::test]
    async fn who_sits_on_a_place_loses_it_to_a_newcomer() {
        let admission = admission();
        let mut idle: Vec<_> = (0..8)
            .filter_map(|_| begin(&admission, [192, 0, 2, 1], true))
            .collect();
        assert_eq!(idle.len(), 8);
        let first = tokio::spawn(idle.remove(0).hold(std::future::pending::<()>()));
        let later = Instant::now() + SETTLED;
        let Verdict::Begin(place) = admission.judge([192, 0, 2, 1].into(), true, later) else {
            panic!("no place")
        };
        assert_eq!(first.await.unwrap(), None, "the oldest one has ended");
        assert_eq!(place.hold(async { 5 }).await, Some(5));
    }

    fn streams() -> Admission {
        Admission::of_streams(8, 256, Seen::default(), Losses::default())
    }

    #[tokio::test]
    async fn a_stream_that_has_begun_keeps_its_place_before_the_silent() {
        let admission = streams();
        let mut idle: Vec<_> = (0..8)
            .filter_map(|_| begin(&admission, [192, 0, 2, 1], true))
            .collect();
        let (go, gone) = oneshot::channel::<()>();
        let oldest = idle.remove(0).hold(async move {
            reached(Step::Begun);
            gone.await
        });
        let oldest = tokio::spawn(oldest);
        tokio::task::yield_now().await;
        // Whose task is at no handshake is no place's.
        reached(Step::Begun);
        let silent = tokio::spawn(idle.remove(0).hold(std::future::pending::<()>()));
        let later = Instant::now() + QUIET;
        assert!(matches!(
            admission.judge([192, 0, 2, 1].into(), true, later),
            Verdict::Begin(_)
        ));
        assert_eq!(silent.await.unwrap(), None);
        go.send(()).unwrap();
        assert_eq!(oldest.await.unwrap(), Some(Ok(())));
    }

    #[test]
    fn loopback_has_the_places_of_all_and_what_is_lost_is_counted() {
        let admission = streams();
        let now = Instant::now();
        let judged = |source: [u8; 4]| match admission.judge(source.into(), true, now) {
            Verdict::Begin(place) => Some(place),
            Verdict::Prove | Verdict::Ignore => None,
        };
        let flood: Vec<_> = (0..200).filter_map(|_| judged([127, 0, 0, 1])).collect();
        assert_eq!(flood.len(), 192);
        let other = judged([192, 0, 2, 1]);
        assert!(other.is_some(), "who has few places finds one at once");
        let counts = admission.losses.counts();
        assert_eq!((counts.streams_refused, counts.streams_ended), (8, 1));
        assert!(counts.last.is_some());
        assert_eq!((counts.quic_refused, counts.quic_ended), (0, 0));
    }
}
