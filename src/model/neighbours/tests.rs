//! The graph of those who hold each other: connected, small and steady.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::testing::Dice;

const SUBNET: SubnetId = SubnetId([7; 16]);

/// Members, each by some grant of its own.
fn granted(members: &[PeerId]) -> BTreeMap<PeerId, Digest> {
    members.iter().map(|peer| (*peer, peer.0)).collect()
}

/// A subnet of so many members.
struct Crowd {
    members: Vec<PeerId>,
    neighbours: Neighbours,
    dice: Dice,
}

impl Crowd {
    fn new(seed: u64, count: usize) -> Crowd {
        let mut dice = Dice::new(seed);
        let members: Vec<PeerId> = (0..count).map(|_| PeerId(dice.key())).collect();
        let mut neighbours = Neighbours::default();
        neighbours.set(SUBNET, granted(&members));
        Crowd {
            members,
            neighbours,
            dice,
        }
    }

    /// So many members of a hundred.
    fn some(&mut self, percent: u64) -> BTreeSet<PeerId> {
        let dice = &mut self.dice;
        let all = self.members.iter();
        all.filter(|_| dice.percent(percent)).copied().collect()
    }

    /// Whom each one that is there holds, where everybody knows who is away.
    fn chosen(&self, away: &BTreeSet<PeerId>) -> BTreeMap<PeerId, BTreeSet<PeerId>> {
        self.chosen_as(away, |_| true)
    }

    /// Those of them whom it holds for such a reason.
    fn chosen_as(
        &self,
        away: &BTreeSet<PeerId>,
        is_meant: impl Fn(Why) -> bool,
    ) -> BTreeMap<PeerId, BTreeSet<PeerId>> {
        let (nobody, nothing) = (BTreeSet::new(), BTreeMap::new());
        let known = Known {
            homes: &nobody,
            round_trips: &nothing,
            away,
            held: &nobody,
            round: 0,
        };
        let there = self.members.iter().filter(|peer| !away.contains(peer));
        there
            .map(|me| {
                let chosen = self.neighbours.choose(*me, EVERYBODY, &known);
                let meant = chosen.into_iter().filter(|(_, why)| is_meant(*why));
                (*me, meant.map(|(peer, _)| peer).collect())
            })
            .collect()
    }
}

/// The same as edges that know no direction, without those to who is away.
fn edges(chosen: &BTreeMap<PeerId, BTreeSet<PeerId>>) -> BTreeMap<PeerId, BTreeSet<PeerId>> {
    let mut edges: BTreeMap<PeerId, BTreeSet<PeerId>> = BTreeMap::new();
    for (from, all) in chosen {
        edges.entry(*from).or_default();
        for to in all.iter().filter(|to| chosen.contains_key(to)) {
            edges.entry(*from).or_default().insert(*to);
            edges.entry(*to).or_default().insert(*from);
        }
    }
    edges
}

/// How many steps the farthest is away, and how many are reached.
fn reach(edges: &BTreeMap<PeerId, BTreeSet<PeerId>>, from: PeerId) -> (usize, usize) {
    let mut steps = BTreeMap::from([(from, 0)]);
    let mut queue = VecDeque::from([from]);
    let mut farthest = 0;
    while let Some(at) = queue.pop_front() {
        let next = steps[&at] + 1;
        for to in &edges[&at] {
            if !steps.contains_key(to) {
                steps.insert(*to, next);
                farthest = next;
                queue.push_back(*to);
            }
        }
    }
    (farthest, steps.len())
}

/// The most held by one, whoever of the two chose.
fn degree(edges: &BTreeMap<PeerId, BTreeSet<PeerId>>) -> usize {
    edges.values().map(BTreeSet::len).max().unwrap_or(0)
}

#[test]
fn a_thousand_members_are_connected_in_few_steps_and_hold_few() {
    let mut crowd = Crowd::new(1, 1000);
    for percent in [0, 30, 60] {
        let away = crowd.some(percent);
        let chosen = crowd.chosen(&away);
        let edges = edges(&chosen);
        let first = *edges.keys().next().unwrap();
        let far: Vec<_> = edges.keys().take(50).map(|at| reach(&edges, *at)).collect();
        let steps = far.iter().map(|(steps, _)| *steps).max().unwrap();
        let held: usize = edges.values().map(BTreeSet::len).sum();
        println!(
            "{percent} % away: {} there, {steps} steps, {} held on average, {} at most",
            edges.len(),
            held / edges.len(),
            degree(&edges)
        );
        assert_eq!(reach(&edges, first).1, edges.len(), "all are reached");
        assert!(steps <= 8, "{steps} steps with {percent} % away");
        assert!(degree(&edges) <= 24, "{} held", degree(&edges));
        assert!(held / edges.len() <= 14);
    }
}

/// Presence goes this way, a step in each period, and who is not told of for twelve of them is gone.
#[test]
fn along_the_rings_alone_a_thousand_members_are_ten_steps_apart_at_most() {
    let mut crowd = Crowd::new(9, 1000);
    for percent in [0, 30, 60] {
        let away = crowd.some(percent);
        let chosen = crowd.chosen_as(&away, |why| why == Why::Ring);
        let edges = edges(&chosen);
        let far: Vec<_> = edges.keys().take(50).map(|at| reach(&edges, *at)).collect();
        let steps = far.iter().map(|(steps, _)| *steps).max().unwrap();
        println!("{percent} % away: {steps} steps");
        assert!(far.iter().all(|(_, reached)| *reached == edges.len()));
        assert!(steps <= 10, "{steps} steps with {percent} % away");
    }
}

#[test]
fn up_to_thirty_two_everybody_holds_everybody_and_above_that_few() {
    for (count, most) in [(2, 1), (EVERYBODY, EVERYBODY - 1)] {
        let chosen = Crowd::new(2, count).chosen(&BTreeSet::new());
        assert!(chosen.values().all(|held| held.len() == most));
    }
    // This node may be missing from the list: it counts all the same.
    let mut crowd = Crowd::new(2, EVERYBODY);
    let me = crowd.members.pop().unwrap();
    crowd.neighbours.set(SUBNET, granted(&crowd.members));
    crowd.members = vec![me];
    assert_eq!(crowd.chosen(&BTreeSet::new())[&me].len(), EVERYBODY - 1);
    let chosen = Crowd::new(2, EVERYBODY + 1).chosen(&BTreeSet::new());
    let most = 2 * RINGS + NEAR + 1;
    assert!(chosen.values().all(|held| held.len() <= most), "{chosen:?}");
}

#[test]
fn one_that_is_near_to_all_is_chosen_by_no_more_than_its_window() {
    let crowd = Crowd::new(3, 1000);
    let (nobody, hub) = (BTreeSet::new(), crowd.members[500]);
    let mut round_trips: BTreeMap<PeerId, Duration> = crowd
        .members
        .iter()
        .map(|p| (*p, Duration::from_millis(100)))
        .collect();
    round_trips.insert(hub, Duration::from_millis(1));
    let known = Known {
        homes: &nobody,
        round_trips: &round_trips,
        away: &nobody,
        held: &nobody,
        round: 0,
    };
    let choose = |me: &PeerId| crowd.neighbours.choose(*me, EVERYBODY, &known);
    let by = crowd
        .members
        .iter()
        .filter(|me| choose(me).contains_key(&hub))
        .count();
    assert!(
        (WINDOW / 2..=WINDOW + 2 * RINGS).contains(&by),
        "chosen by {by}"
    );
}

#[test]
fn a_near_one_stays_until_another_is_clearly_nearer() {
    let crowd = Crowd::new(4, 200);
    let (nobody, me) = (BTreeSet::new(), crowd.members[0]);
    let even: BTreeMap<PeerId, Duration> = crowd
        .members
        .iter()
        .map(|p| (*p, Duration::from_millis(40)))
        .collect();
    let near = |round_trips: &BTreeMap<PeerId, Duration>, held: &BTreeSet<PeerId>| {
        let known = Known {
            homes: &nobody,
            round_trips,
            away: &nobody,
            held,
            round: 0,
        };
        let chosen = crowd.neighbours.choose(me, EVERYBODY, &known);
        let near = chosen.into_iter().filter(|(_, why)| *why == Why::Near);
        near.map(|(peer, _)| peer).collect::<BTreeSet<_>>()
    };
    let before = near(&even, &nobody);
    assert_eq!(before.len(), NEAR);
    let nearer = |milliseconds| {
        let others = even.keys().filter(|peer| !before.contains(peer));
        let mut all = even.clone();
        all.extend(others.map(|peer| (*peer, Duration::from_millis(milliseconds))));
        all
    };
    assert_eq!(near(&nearer(33), &before), before, "less than a fifth");
    assert_eq!(near(&nearer(31), &before), before, "less than 10 ms");
    assert!(near(&nearer(25), &before).is_disjoint(&before));
}

#[test]
fn each_of_the_window_has_its_turn_to_be_measured() {
    let crowd = Crowd::new(5, 200);
    let (nobody, nothing, me) = (BTreeSet::new(), BTreeMap::new(), crowd.members[0]);
    let mut seen = BTreeSet::new();
    for round in 0..64 {
        let known = Known {
            homes: &nobody,
            round_trips: &nothing,
            away: &nobody,
            held: &nobody,
            round,
        };
        let chosen = crowd.neighbours.choose(me, EVERYBODY, &known);
        assert!(chosen.len() <= 2 * RINGS + NEAR + 1);
        seen.extend(
            chosen
                .into_iter()
                .filter(|(_, why)| *why >= Why::Near)
                .map(|(p, _)| p),
        );
    }
    assert!(seen.len() >= WINDOW - 2 * RINGS, "{} measured", seen.len());
}

#[test]
fn subnets_add_up_and_home_relays_are_members() {
    let crowd = Crowd::new(6, 100);
    let me = crowd.members[0];
    let mut both = crowd.neighbours.clone();
    let small = granted(&[me, PeerId([1; 32]), PeerId([2; 32])]);
    both.set(SubnetId([8; 16]), small.clone());
    let homes: BTreeSet<PeerId> = [crowd.members[50], PeerId([9; 32])].into();
    let (nobody, nothing) = (BTreeSet::new(), BTreeMap::new());
    let known = Known {
        homes: &homes,
        round_trips: &nothing,
        away: &nobody,
        held: &nobody,
        round: 0,
    };
    let chosen = both.choose(me, EVERYBODY, &known);
    assert_eq!(chosen.get(&PeerId([1; 32])), Some(&Why::Everybody));
    assert_eq!(chosen.get(&crowd.members[50]), Some(&Why::Home));
    assert!(!chosen.contains_key(&PeerId([9; 32])), "no member");
    assert!(!chosen.contains_key(&me));
    both.keep(|subnet| *subnet != SUBNET);
    assert_eq!(both.choose(me, EVERYBODY, &known).len(), 2);
}

#[test]
fn a_key_that_was_made_for_a_place_beside_somebody_stands_elsewhere_by_a_grant_nobody_could_know() {
    let mut crowd = Crowd::new(8, 1000);
    let victim = crowd.members[0];
    let mut stands_beside = |key: PeerId, grant: Digest| {
        let mut members = granted(&crowd.members);
        members.insert(key, grant);
        crowd.neighbours.set(SUBNET, members.clone());
        let nobody = BTreeSet::new();
        let known = Known {
            homes: &nobody,
            round_trips: &BTreeMap::new(),
            away: &nobody,
            held: &nobody,
            round: 0,
        };
        let held = crowd.neighbours.choose(victim, EVERYBODY, &known);
        held.get(&key) == Some(&Why::Ring)
    };
    let mut dice = Dice::new(9);
    // The one try of a few hundred that hits, by a grant that the attacker has to guess.
    let guess = dice.key();
    let mut keys = (0..10_000).map(|_| PeerId(dice.key()));
    let made = keys.find(|key| stands_beside(*key, guess)).unwrap();
    let hits = (0..1000).filter(|_| stands_beside(made, dice.key()));
    // Four places of a thousand: by chance four times, whatever the key is.
    let hits = hits.count();
    assert!(hits < 20, "{hits} of 1000");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whoever_is_there_stays_connected(seed in any::<u64>(), count in 33..400_usize, percent in 0..50_u64) {
        let mut crowd = Crowd::new(seed, count);
        let mut away = crowd.some(percent);
        away.remove(&crowd.members[0]);
        let edges = edges(&crowd.chosen(&away));
        let (steps, reached) = reach(&edges, crowd.members[0]);
        prop_assert_eq!(reached, edges.len());
        prop_assert!(steps <= 10, "{} steps", steps);
        prop_assert!(degree(&edges) <= 2 * RINGS + NEAR + 1 + WINDOW);
    }

    #[test]
    fn both_ends_of_a_ring_edge_hold_each_other(seed in any::<u64>(), count in 33..200_usize, percent in 0..60_u64) {
        let mut crowd = Crowd::new(seed, count);
        let away = crowd.some(percent);
        let (nobody, nothing) = (BTreeSet::new(), BTreeMap::new());
        let known = Known { homes: &nobody, round_trips: &nothing, away: &away, held: &nobody, round: 0 };
        let there = crowd.members.iter().filter(|peer| !away.contains(peer));
        let ring: BTreeMap<PeerId, BTreeSet<PeerId>> = there.map(|me| {
            let chosen = crowd.neighbours.choose(*me, EVERYBODY, &known);
            let ring = chosen.into_iter().filter(|(peer, why)| *why == Why::Ring && !away.contains(peer));
            (*me, ring.map(|(peer, _)| peer).collect())
        }).collect();
        for (me, all) in &ring {
            for other in all {
                prop_assert!(ring[other].contains(me), "{} holds {}", me, other);
            }
        }
    }

    #[test]
    fn one_that_comes_or_goes_changes_few_edges(seed in any::<u64>(), count in 40..400_usize) {
        let mut crowd = Crowd::new(seed, count);
        let nobody = BTreeSet::new();
        let flat = |chosen: &BTreeMap<PeerId, BTreeSet<PeerId>>| {
            let pairs = chosen.iter().flat_map(|(me, all)| all.iter().map(|other| (*me, *other)));
            pairs.collect::<BTreeSet<_>>()
        };
        let before = flat(&crowd.chosen(&nobody));
        crowd.members.push(PeerId(crowd.dice.key()));
        crowd.neighbours.set(SUBNET, granted(&crowd.members));
        let after = flat(&crowd.chosen(&nobody));
        let changed = before.symmetric_difference(&after).count();
        prop_assert!(changed <= 100, "{} of {} edges changed", changed, before.len());
        crowd.members.pop();
        crowd.neighbours.set(SUBNET, granted(&crowd.members));
        prop_assert_eq!(&flat(&crowd.chosen(&nobody)), &before);
        // A grant that is renewed moves its member, and nobody else.
        let mut renewed = granted(&crowd.members);
        renewed.insert(crowd.members[0], crowd.dice.key());
        crowd.neighbours.set(SUBNET, renewed.clone());
        let changed = before.symmetric_difference(&flat(&crowd.chosen(&nobody))).count();
        prop_assert!(changed <= 200, "{} of {} edges changed", changed, before.len());
        crowd.neighbours.set(SUBNET, granted(&crowd.members));
        prop_assert_eq!(flat(&crowd.chosen(&nobody)), before);
    }
}
