//! Which cipher, by which library, is fastest on this processor. It is measured once, at start, in a few milliseconds:
//! names of processors and their features tell less than a clock (hypervisors hide some, and code paths change).

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::crypto::aead::{Cipher, KEY, Key, Library, TAG};
use crate::crypto::frame::HEADER;

/// Bytes of the frames that are timed: a full one, and a small one.
const FRAMES: [usize; 2] = [1372, 64];
/// Frames of each size in one round; the shortest of all rounds counts, because what disturbs one only makes it longer.
const IN_A_ROUND: u64 = 16;
const ROUNDS: u64 = 8;
/// A candidate replaces the one before it only where it needs less than nine tenths of its time.
const BETTER: (u32, u32) = (9, 10);

/// How this machine seals where its peers can do the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealing {
    /// The cipher that this machine prefers.
    pub cipher: Cipher,
    /// The library that computes that cipher.
    pub library: Library,
}

impl Sealing {
    /// The library that computes AES-256-GCM; none where ChaCha20-Poly1305 is preferred.
    pub fn aes(self) -> Option<Library> {
        (self.cipher == Cipher::Aes256Gcm).then_some(self.library)
    }
}

impl fmt::Display for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.cipher, self.library)
    }
}

/// The candidates, the one that needs the best reason last.
const CANDIDATES: [Sealing; 3] = [
    Sealing {
        cipher: Cipher::Aes256Gcm,
        library: Library::AwsLc,
    },
    Sealing {
        cipher: Cipher::Aes256Gcm,
        library: Library::Ring,
    },
    CHACHA,
];
/// Sealing that needs no instructions of its own from the processor.
pub const CHACHA: Sealing = Sealing {
    cipher: Cipher::ChaCha20Poly1305,
    library: Library::AwsLc,
};

/// The fastest sealing on this processor. It is measured at the first call, which takes a few
/// milliseconds.
pub fn fastest() -> Sealing {
    static FASTEST: OnceLock<Sealing> = OnceLock::new();
    *FASTEST.get_or_init(|| if has_aes() { choose(&times()) } else { CHACHA })
}

/// The library that computes AES-256-GCM faster here, whatever ChaCha20-Poly1305 would need.
pub fn fastest_aes() -> Library {
    static FASTEST: OnceLock<Library> = OnceLock::new();
    *FASTEST.get_or_init(|| choose(&times()[..2]).library)
}

/// Whether the processor computes AES-GCM in instructions of its own: else ChaCha20-Poly1305 is faster, and needs no
/// tables that leak through the cache.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn choose(times: &[(Sealing, Duration)]) -> Sealing {
    let (numerator, denominator) = BETTER;
    let faster = |best: (Sealing, Duration), next: &(Sealing, Duration)| {
        if next.1 * denominator < best.1 * numerator {
            *next
        } else {
            best
        }
    };
    let none = (CANDIDATES[0], Duration::MAX / denominator);
    times.iter().fold(none, faster).0
}

/// How long each candidate needs to seal and open one round. The rounds take turns, so that what disturbs meets all.
pub fn times() -> [(Sealing, Duration); 3] {
    let mut shortest = CANDIDATES.map(|of| (of, Duration::MAX / 100));
    for round in 0..ROUNDS {
        for (of, shortest) in &mut shortest {
            *shortest = self::round(*of, round).map_or(*shortest, |time| time.min(*shortest));
        }
    }
    shortest
}

fn round(of: Sealing, round: u64) -> Option<Duration> {
    let key = Key::new(of.cipher, of.library, &[0x5a; KEY])?;
    let (plain, header) = ([0x33; FRAMES[0]], [0; HEADER]);
    let (mut sealed, mut opened) = ([0; FRAMES[0] + TAG], [0; FRAMES[0]]);
    let start = Instant::now();
    for frame in 0..IN_A_ROUND {
        for size in FRAMES {
            let mut nonce = [0; 12];
            let (counter, rest) = nonce.split_first_chunk_mut::<8>()?;
            *counter = (round * IN_A_ROUND + frame).to_be_bytes();
            rest.first_mut()
                .map(|byte| *byte = u8::from(size == FRAMES[0]))?;
            let sealed = sealed.get_mut(..size + TAG)?;
            key.seal(nonce, &header, plain.get(..size)?, &[], sealed)?;
            let (ciphertext, tag) = sealed.split_last_chunk::<TAG>()?;
            key.open(nonce, &header, ciphertext, tag, opened.get_mut(..size)?)?;
        }
    }
    Some(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(aws: u64, ring: u64, chacha: u64) -> String {
        let times = [aws, ring, chacha].map(Duration::from_micros);
        choose(&std::array::from_fn::<_, 3, _>(|n| {
            (CANDIDATES[n], times[n])
        }))
        .to_string()
    }

    #[test]
    fn the_fastest_is_chosen_and_a_tie_changes_nothing() {
        assert_eq!(chosen(100, 50, 300), "aes-256-gcm by ring");
        assert_eq!(chosen(100, 100, 300), "aes-256-gcm by aws-lc");
        assert_eq!(
            chosen(100, 95, 300),
            "aes-256-gcm by aws-lc",
            "within what a measurement is worth"
        );
        assert_eq!(chosen(100, 150, 300), "aes-256-gcm by aws-lc");
        assert_eq!(chosen(900, 950, 300), "chacha20-poly1305 by aws-lc");
    }

    #[test]
    fn every_candidate_is_measured_within_a_tenth_of_a_second() {
        let start = Instant::now();
        let times = times();
        assert!(
            times
                .iter()
                .all(|(_, time)| *time < Duration::from_millis(10) && !time.is_zero()),
            "{times:?}"
        );
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(CANDIDATES.contains(&fastest()));
    }
}
