//! A NAT that ends each mapping at an age, whatever passes.

use super::*;

/// The first side behind such a NAT, and a path.
pub(super) fn behind(age: u32, seed: u64) -> World {
    let mut world = World::new(seed);
    world.nat = Some(Nat {
        age: age * SECOND,
        idle: 10_000 * SECOND,
        mappings: BTreeMap::new(),
        last: (20_000, 0),
        contacts: None,
    });
    world.begin();
    assert!(world.until(5 * SECOND, World::both_up).is_some());
    world
}

impl World {
    /// Packets of both sides for so long, fifty a second each; how many were lost each way.
    pub(super) fn lose(&mut self, time: Duration) -> [u64; 2] {
        self.packets = Default::default();
        self.busy = [true; 2];
        let end = self.net.now + time;
        while self.net.now < end {
            for side in 0..2 {
                self.packets[side].0 += 1;
                let to = self.sides[side].path().map(|path| path.pair.remote);
                if let Some(to) = to {
                    self.pass_nat(side, to, Message::Data, 1000);
                }
            }
            self.run(20 * MS);
        }
        self.busy = [false; 2];
        self.run(SECOND);
        self.packets.map(|(sent, arrived)| sent - arrived)
    }

    fn aged(&self, side: usize) -> usize {
        let changes = self.sides[side].history();
        changes.filter(|change| change.cause == Cause::Aged).count()
    }
}

#[test]
fn after_three_mappings_no_packet_is_lost_to_their_age() {
    for seed in 1..20 {
        for age in [12, 20, 60] {
            let mut world = behind(age, seed);
            let learning = world.lose((3 * age + 4) * SECOND);
            assert_eq!(world.aged(0), 0);
            assert!((50..300).contains(&learning[1]), "{learning:?}");
            let then = world.lose(3 * age * SECOND);
            assert_eq!(then, [0, 0], "of mappings that end after {age} s");
            assert!(world.aged(0) >= 3 && world.aged(1) >= 3);
            let mtu = |side: &Paths| side.path().unwrap().mtu;
            assert!(world.sides.iter().all(|side| mtu(side) == 1500));
        }
    }
}

#[test]
fn a_further_socket_is_used_although_probes_by_it_are_lost() {
    for (seed, lost) in [(1, 1), (2, 2), (3, 4)] {
        let mut world = behind(20, seed);
        world.lose(64 * SECOND);
        world.unlucky = lost;
        assert_eq!(world.lose(80 * SECOND), [0, 0]);
        assert_eq!(world.unlucky, 0);
        assert!(world.aged(0) >= 4, "{} of five", world.aged(0));
    }
}

#[test]
fn on_a_lossy_line_the_age_is_kept_all_the_same() {
    let mut world = behind(30, 7);
    world.net.loss = 2;
    world.lose(95 * SECOND);
    let [out, back] = world.lose(240 * SECOND);
    // Of 12,000: what the line loses, and hardly more.
    assert!(out < 400 && back < 400, "{out} {back}");
    assert!(world.aged(0) >= 7);
}

/// Where the peer's NAT lets in only what it has sent to, no socket that it does not know gets through: it is tried once in
/// ten minutes, and the path goes on as before.
#[test]
fn a_peer_that_lets_no_other_socket_in_is_not_bothered() {
    let mut world = behind(20, 5);
    world.lose(65 * SECOND);
    let known = world.sides[1].path().unwrap().pair.remote.address;
    world.nat.as_mut().unwrap().contacts = Some(vec![known]);
    let opened = |world: &World| {
        let fresh = |(_, _, output): &&(Duration, usize, Output)| *output == Output::Fresh;
        world.log.iter().filter(fresh).count()
    };
    let before = opened(&world);
    world.run(14 * SECOND);
    assert!(opened(&world) <= before + 1);
    assert_eq!(world.aged(0), 0);
    assert!(world.both_up());
}

#[test]
fn another_network_has_no_known_age() {
    let mut world = behind(20, 6);
    world.lose(65 * SECOND);
    world.sides[0].roamed(world.net.now, &[]);
    world.nat.as_mut().unwrap().age = 10_000 * SECOND;
    let before = world.aged(0);
    world.run(120 * SECOND);
    assert_eq!(world.aged(0), before);
}

/// Somebody who copies frames and sends them on from elsewhere does not become the path by them.
#[test]
fn the_word_that_the_peer_moves_is_no_good_from_elsewhere() {
    let mut world = World::new(3);
    world.begin();
    world.run(SECOND);
    let (here, there) = (world.source[1], address("198.51.100.66:9"));
    let mut no_dice = |_: &mut [u8]| {};
    world.sides[0].on_renewed(world.net.now, from(there), here, &[], &mut no_dice);
    assert!(world.sides[0].poll().is_none());
    // And where it is right, the other address has to answer first.
    world.sides[0].on_renewed(world.net.now, from(there), there, &[], &mut no_dice);
    world.run(5 * SECOND);
    assert_eq!(world.route[0].unwrap().0, here);
    assert_eq!(world.sides[0].changes(), 1);
}
