//! Finding where two sets of records differ, at a cost that grows with the differences and not with the sets.
//!
//! The digests of records are spread evenly, so that a range of them is named by the bits that they begin with. Each end
//! hashes what it holds of a range. Where the hashes differ the range is divided into 16, or listed where it holds few.
//! Of 3,000 records one that differs is found in two exchanges and some 500 bytes; a list of them all has 24,000.
//!
//! The hashes are salted by who asks, anew each time: nobody can sign records such that two sets look the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::chunks::Chunks;
use super::record::Digest;

/// Ranges that a range is divided into.
pub const DIVISIONS: usize = 16;
/// Parts of one question or answer; what is left over comes with the next.
pub const MAX_PARTS: usize = 256;
/// Digests of a range that is listed rather than divided.
const FEW: usize = 16;
/// Digests of the largest range whose list is answered with a list.
const MANY: usize = 64;
/// Parts that wait for their turn in one comparison. More are not asked in its questions, and a lying member could make them
/// many.
const MAX_OPEN: usize = 64 * MAX_PARTS;
/// Differences that one comparison remembers of what only the other holds; the next one finds what is left.
const MAX_FOUND: usize = 65_536;
/// How often the whole can be divided. Digests that begin alike further than that are listed, however many there are.
const DEEPEST: u8 = 15;

/// The first eight bytes of a digest, which stand for it among the records of one subnet.
pub type Short = [u8; 8];

/// The digests that begin with the same bits, four for each division.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range {
    /// How often the whole was divided to get this.
    depth: u8,
    /// What the digests begin with, as a big-endian number of eight bytes whose other bits are 0.
    prefix: Short,
}

/// What an end says of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// The hashes of the [`DIVISIONS`] ranges that this one is divided into, in order.
    Divided([Short; DIVISIONS]),
    /// All that is held of it, in order.
    Listed(Vec<Short>),
}

/// A range in which the two may differ, with what one of them says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The range that it is about.
    pub range: Range,
    /// What its sender holds of that range.
    pub said: Said,
}

/// The digests of the records that are held.
type Held = Chunks<Digest, ()>;

impl Range {
    /// Everything.
    pub const WHOLE: Range = Range {
        depth: 0,
        prefix: [0; 8],
    };

    /// The bits that the digests of the range share.
    fn mask(self) -> u64 {
        let free =
            u32::from(DEEPEST.saturating_add(1).saturating_sub(self.depth)).saturating_mul(4);
        u64::MAX.checked_shl(free).unwrap_or(0)
    }

    /// Whether it is a range at all: others may send anything.
    fn is_valid(self) -> bool {
        self.depth <= DEEPEST && u64::from_be_bytes(self.prefix) & !self.mask() == 0
    }

    /// The first and the last number that a digest of the range may begin with.
    fn bounds(self) -> (u64, u64) {
        let first = u64::from_be_bytes(self.prefix);
        (first, first | !self.mask())
    }

    fn holds(self, digest: &Digest) -> bool {
        u64::from_be_bytes(short(digest)) & self.mask() == u64::from_be_bytes(self.prefix)
    }

    /// The ranges that it is divided into; none where it is divided no further.
    fn divided(self) -> Option<[Range; DIVISIONS]> {
        let depth = self
            .depth
            .checked_add(1)
            .filter(|depth| *depth <= DEEPEST)?;
        let free = u32::from(DEEPEST.saturating_add(1).saturating_sub(depth)).saturating_mul(4);
        let whole = u64::from_be_bytes(self.prefix);
        let mut number = 0_u64;
        Some([(); DIVISIONS].map(|()| {
            let prefix = (whole | number.checked_shl(free).unwrap_or(0)).to_be_bytes();
            number = number.saturating_add(1);
            Range { depth, prefix }
        }))
    }

    /// The digests of the range that are held, in order.
    fn of(self, held: &Held) -> impl Iterator<Item = &Digest> {
        let mut first = [0; 32];
        if let Some(front) = first.first_chunk_mut::<8>() {
            *front = self.prefix;
        }
        let all = held.from(&first).map(|(digest, ())| digest);
        all.take_while(move |digest| self.holds(digest))
    }

    fn listed(self, held: &Held) -> Vec<Short> {
        self.of(held).map(short).collect()
    }

    /// The hash of what is held of the range.
    fn hash(self, held: &Held, salt: Short) -> Short {
        let mut hash = Sha256::new_with_prefix(salt);
        self.of(held).for_each(|digest| hash.update(digest));
        short(&hash.finalize().into())
    }

    /// What is said of a range whose hashes differ.
    fn said(self, held: &Held, salt: Short) -> Part {
        let few = self.of(held).nth(FEW).is_none();
        let said = match self.divided().filter(|_| !few) {
            Some(ranges) => Said::Divided(ranges.map(|range| range.hash(held, salt))),
            None => Said::Listed(self.listed(held)),
        };
        Part { range: self, said }
    }

    /// What is said of those of its divisions whose hashes are others than `theirs`.
    fn differing(
        self,
        held: &Held,
        salt: Short,
        theirs: &[Short; DIVISIONS],
    ) -> impl Iterator<Item = Part> {
        let ranges = self.divided().into_iter().flatten();
        let others = ranges
            .zip(theirs)
            .filter(move |(range, theirs)| range.hash(held, salt) != **theirs);
        others.map(move |(range, _)| range.said(held, salt))
    }
}

/// The first eight bytes of a digest.
fn short(digest: &Digest) -> Short {
    digest.first_chunk().copied().unwrap_or_default()
}

/// Ranges of which none overlaps another.
#[derive(Default)]
struct Disjoint(BTreeMap<u64, u64>);

impl Disjoint {
    /// Whether a range overlaps none of those before it; then it is one of them.
    fn adds(&mut self, range: Range) -> bool {
        let (first, last) = range.bounds();
        let before = self.0.range(..=last).next_back();
        let is_free = before.is_none_or(|(_, end)| *end < first);
        if is_free {
            self.0.insert(first, last);
        }
        is_free
    }
}

/// Answers what a member says of its records: parts for the ranges in which `held` differs. At most [`MAX_PARTS`] of
/// what was asked are looked at. Malformed ranges are passed over, and so are those that overlap an earlier one: else a
/// short question about the whole, many times over, would have the records hashed and listed as often.
pub fn answer(held: &Held, salt: Short, asked: &[Part]) -> Vec<Part> {
    let (mut parts, mut disjoint) = (Vec::new(), Disjoint::default());
    let asked = asked.iter().take(MAX_PARTS);
    for part in asked.filter(|part| part.range.is_valid() && disjoint.adds(part.range)) {
        match &part.said {
            Said::Divided(theirs) => parts.extend(part.range.differing(held, salt, theirs)),
            Said::Listed(theirs) => {
                let mine = part.range.listed(held);
                if mine.len() > MANY && part.range.divided().is_some() {
                    parts.push(part.range.said(held, salt));
                } else if mine != *theirs {
                    parts.push(Part {
                        range: part.range,
                        said: Said::Listed(mine),
                    });
                }
            }
        }
    }
    parts
}

/// One comparison, at the end that asks. It looks at one set of records from its beginning to its end.
#[derive(Debug, Clone)]
pub struct Differing {
    salt: Short,
    /// What is to be asked yet.
    open: VecDeque<Part>,
    /// Ranges that the next answer may be about: what was asked, and what that divides into.
    asked: BTreeSet<Range>,
    /// Records that the other holds and this end does not, as far as they were found.
    pub lacking: BTreeSet<Short>,
    /// Records that this end holds and the other does not, as far as they were found.
    pub beyond: BTreeSet<Short>,
}

impl Differing {
    /// Begins one about everything. `salt` is random.
    pub fn new(held: &Held, salt: Short) -> Differing {
        Differing {
            salt,
            open: [Range::WHOLE.said(held, salt)].into(),
            asked: BTreeSet::new(),
            lacking: BTreeSet::new(),
            beyond: BTreeSet::new(),
        }
    }

    /// What is to be asked next, at most [`MAX_PARTS`]; nothing once all differences are found.
    pub fn question(&mut self) -> Vec<Part> {
        let some = self.open.len().min(MAX_PARTS);
        let parts: Vec<Part> = self.open.drain(..some).collect();
        self.asked.clear();
        for part in &parts {
            match part.said {
                Said::Listed(_) => self.asked.extend([part.range]),
                Said::Divided(_) => self
                    .asked
                    .extend(part.range.divided().into_iter().flatten()),
            }
        }
        parts
    }

    /// Takes an answer. What was not asked is passed over, and so is what is said twice. What it brings is bounded, whatever
    /// the other says: [`MAX_OPEN`] parts to ask about, and [`MAX_FOUND`] differences.
    pub fn answered(&mut self, held: &Held, parts: &[Part]) {
        for part in parts {
            if !self.asked.remove(&part.range) {
                continue;
            }
            match &part.said {
                Said::Divided(theirs) => {
                    let free = MAX_OPEN.saturating_sub(self.open.len());
                    let more = part.range.differing(held, self.salt, theirs);
                    self.open.extend(more.take(free));
                }
                Said::Listed(theirs) => {
                    let theirs: BTreeSet<Short> = theirs.iter().copied().collect();
                    let mine: BTreeSet<Short> = part.range.listed(held).into_iter().collect();
                    let free = MAX_FOUND.saturating_sub(self.lacking.len());
                    self.lacking.extend(theirs.difference(&mine).take(free));
                    self.beyond.extend(mine.difference(&theirs));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::testing::Dice;
    use proptest::prelude::*;

    fn held(digests: &[Digest]) -> Held {
        let mut held = Held::default();
        digests.iter().for_each(|digest| {
            held.insert(*digest, ());
        });
        held
    }

    fn digest(dice: &mut Dice) -> Digest {
        let number = dice.index(usize::MAX).to_be_bytes();
        Sha256::digest(number).into()
    }

    /// Runs a comparison to its end: what was found, the exchanges, and the bytes in both directions.
    fn compare(asks: &Held, answers: &Held) -> (Differing, usize, usize) {
        let (mut exchanges, mut bytes) = (0, 0);
        let mut differing = Differing::new(asks, [7; 8]);
        loop {
            let question = differing.question();
            if question.is_empty() {
                return (differing, exchanges, bytes);
            }
            exchanges += 1;
            let said = answer(answers, [7; 8], &question);
            bytes += codec::encode(&question).len() + codec::encode(&said).len();
            differing.answered(asks, &said);
        }
    }

    fn found(differing: &Differing) -> (Vec<Short>, Vec<Short>) {
        let all = |set: &BTreeSet<Short>| set.iter().copied().collect();
        (all(&differing.lacking), all(&differing.beyond))
    }

    #[test]
    fn one_difference_in_three_thousand_costs_little() {
        let mut dice = Dice::new(3);
        let all: Vec<Digest> = (0..3000).map(|_| digest(&mut dice)).collect();
        let whole = held(&all);
        let mut most = (0, 0);
        for missing in all.iter().step_by(100) {
            let mut less = whole.clone();
            less.remove(missing);
            let (differing, exchanges, bytes) = compare(&less, &whole);
            assert_eq!(found(&differing), (vec![short(missing)], vec![]));
            let (differing, ..) = compare(&whole, &less);
            assert_eq!(found(&differing), (vec![], vec![short(missing)]));
            most = most.max((exchanges, bytes));
        }
        println!("exchanges and bytes of one difference: {most:?}");
        assert!(most.0 <= 3 && most.1 <= 800, "{most:?}");
        assert_eq!(compare(&whole, &whole).1, 1, "equal sets are seen at once");
    }

    #[test]
    fn what_was_not_asked_changes_nothing() {
        let mut dice = Dice::new(4);
        let all: Vec<Digest> = (0..200).map(|_| digest(&mut dice)).collect();
        let mine = held(&all);
        let mut differing = Differing::new(&mine, [1; 8]);
        let lie = |range| Part {
            range,
            said: Said::Listed(vec![[9; 8]]),
        };
        assert_eq!(differing.question().len(), 1);
        let children = Range::WHOLE.divided().unwrap();
        let grandchild = children[0].divided().unwrap()[3];
        differing.answered(&mine, &[lie(Range::WHOLE), lie(grandchild)]);
        assert!(differing.lacking.is_empty() && differing.beyond.is_empty());
        differing.answered(&mine, &[lie(children[2]), lie(children[2])]);
        assert_eq!(differing.lacking, [[9; 8]].into());
        // A range whose bits go beyond its depth, and one that is deeper than any.
        let crooked = [
            Range {
                depth: 1,
                prefix: [0, 1, 0, 0, 0, 0, 0, 0],
            },
            Range {
                depth: 200,
                prefix: [0; 8],
            },
        ];
        assert!(answer(&mine, [1; 8], &crooked.map(lie)).is_empty());
    }

    #[test]
    fn a_range_is_answered_once_however_often_it_is_asked() {
        let mut dice = Dice::new(5);
        let all: Vec<Digest> = (0..1000).map(|_| digest(&mut dice)).collect();
        let held = held(&all);
        let empty = |range| Part {
            range,
            said: Said::Listed(vec![]),
        };
        let crooked = |range| Part {
            range,
            said: Said::Divided([[1; 8]; DIVISIONS]),
        };
        let once = answer(&held, [1; 8], &[empty(Range::WHOLE)]);
        let within = Range::WHOLE.divided().unwrap();
        let deeper = within[4].divided().unwrap()[15];
        let inside = [within[3], within[4], deeper].map(empty);
        for asked in [vec![empty(Range::WHOLE); 200], inside.to_vec()] {
            let asked = [vec![empty(Range::WHOLE)], asked].concat();
            assert_eq!(answer(&held, [1; 8], &asked), once);
        }
        let many = vec![crooked(Range::WHOLE); MAX_PARTS];
        assert_eq!(answer(&held, [1; 8], &many).len(), DIVISIONS);
        // The other way round, what encloses an earlier one is passed over; what is beside it is not.
        let beside = [deeper, within[4], Range::WHOLE, within[5]].map(empty);
        let said: Vec<Range> = answer(&held, [1; 8], &beside)
            .into_iter()
            .map(|part| part.range)
            .collect();
        assert_eq!(said, [deeper, within[5]]);
    }

    #[test]
    fn a_member_that_lies_of_ever_more_differences_fills_no_memory() {
        let mut dice = Dice::new(6);
        let all: Vec<Digest> = (0..100).map(|_| digest(&mut dice)).collect();
        let mine = held(&all);
        let mut differing = Differing::new(&mine, [1; 8]);
        let mut most = 0;
        for round in 0..64 {
            differing.question();
            let divided = |range| Part {
                range,
                said: Said::Divided([[1; 8]; DIVISIONS]),
            };
            let asked = differing.asked.iter().copied();
            let mut lies: Vec<Part> = asked.map(divided).collect();
            if round == 2
                && let Some(first) = lies.first_mut()
            {
                let nobody_holds = (0..100_000_u64).map(u64::to_be_bytes);
                first.said = Said::Listed(nobody_holds.collect());
            }
            differing.answered(&mine, &lies);
            most = most.max(differing.open.len());
        }
        assert_eq!(most, MAX_OPEN, "more was open than is ever asked");
        assert_eq!(
            differing.lacking.len(),
            MAX_FOUND,
            "the lies were taken so far"
        );
    }

    #[test]
    fn digests_that_begin_alike_are_told_apart_as_far_as_their_first_bytes_go() {
        let alike: Vec<Digest> = (0..200_u8)
            .map(|n| {
                let mut digest = [5; 32];
                digest[7] = n;
                digest
            })
            .collect();
        let (less, all) = (held(&alike[..100]), held(&alike));
        let (differing, exchanges, _) = compare(&less, &all);
        assert_eq!(differing.lacking.len(), 100);
        assert!(exchanges <= 16, "{exchanges}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn every_difference_is_found_and_nothing_else(
            seed: u64, common in 0_usize..1500, mine in 0_usize..200, theirs in 0_usize..200,
        ) {
            let mut dice = Dice::new(seed);
            let mut some = |count| (0..count).map(|_| digest(&mut dice)).collect::<Vec<_>>();
            let (common, mut mine, mut theirs) = (some(common), some(mine), some(theirs));
            let asks = held(&[common.clone(), mine.clone()].concat());
            let answers = held(&[common, theirs.clone()].concat());
            let (differing, exchanges, _) = compare(&asks, &answers);
            mine.sort_unstable();
            theirs.sort_unstable();
            let shorts = |all: Vec<Digest>| all.iter().map(short).collect::<Vec<_>>();
            prop_assert_eq!(found(&differing), (shorts(theirs), shorts(mine)));
            prop_assert!(exchanges <= 12, "{exchanges}");
        }
    }
}
