//! Whatever a network did, a good one is used again, and timers make progress.

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Run(u16),
    Block(bool),
    Loss(u16),
    Mtu(u16),
    Busy(bool, bool),
    Move(u8, u8),
    Stop(u8),
    Start(u8),
    TooBig(u8),
    Suspect(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u16..8000).prop_map(Step::Run),
        1 => any::<bool>().prop_map(Step::Block),
        1 => (0u16..30).prop_map(Step::Loss),
        1 => (1100u16..9500).prop_map(Step::Mtu),
        1 => any::<(bool, bool)>().prop_map(|(a, b)| Step::Busy(a, b)),
        1 => (0u8..2, 1u8..20).prop_map(|(side, n)| Step::Move(side, n)),
        1 => (0u8..2).prop_map(Step::Stop),
        1 => (0u8..2).prop_map(Step::Start),
        1 => (0u8..2).prop_map(Step::TooBig),
        1 => (0u8..2).prop_map(Step::Suspect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever the network did: once it is well again, both sides agree on a path that carries what they send.
    #[test]
    fn whatever_happened_a_good_network_is_used_again(seed: u64, steps in proptest::collection::vec(step(), 1..30)) {
        let mut world = World::new(seed);
        world.begin();
        for step in steps {
            match step {
                Step::Run(ms) => world.run(u32::from(ms) * MS),
                Step::Block(blocked) => world.blocked = blocked,
                Step::Loss(loss) => world.net.loss = loss.into(),
                Step::Mtu(mtu) => world.mtu(mtu.into()),
                Step::Busy(a, b) => world.busy = [a, b],
                Step::Move(side, n) => {
                    let side = usize::from(side);
                    // Never both to the same.
                    let (old, new) = (world.source[side], SocketAddr::from(([198, 51, 100 + side as u8, n], 4100)));
                    let carries = world.reach.remove(&old).map_or(1500, |r| r.1);
                    world.reach.insert(new, (side, carries));
                    world.source[side] = new;
                }
                Step::Stop(side) => world.sides[usize::from(side)].stop(world.net.now),
                Step::Start(side) => world.sides[usize::from(side)].start(world.net.now),
                Step::Suspect(side) => world.sides[usize::from(side)].suspect(world.net.now),
                Step::TooBig(side) => {
                    let (now, random) = (world.net.now, &mut world.net.dice);
                    world.sides[usize::from(side)].too_big(now, &mut |b| random.fill(b));
                }
            }
            for side in &world.sides {
                prop_assert!(side.pending.len() <= probes::MAX_PENDING && side.outputs.len() <= MAX_OUTPUTS + 8);
            }
        }
        world.blocked = false;
        world.net.loss = 0;
        world.busy = [true; 2];
        world.mtu(1450);
        world.begin();
        world.run(45 * SECOND);
        for side in 0..2 {
            let path = world.sides[side].path();
            prop_assert_eq!(path.map(|p| p.pair.remote.address), Some(world.source[1 - side]));
            prop_assert!(path.is_some_and(|p| p.mtu <= 1450 && p.mtu >= 1280));
            prop_assert_eq!(world.route[side].map(|r| r.1), path.map(|p| payload(p.pair.remote, p.mtu)));
        }
    }

    /// However it is called: it never panics, and never asks to be called in the past for ever.
    #[test]
    fn timers_make_progress(seed: u64, blocked: bool, loss in 0u64..50) {
        let mut world = World::new(seed);
        world.blocked = blocked;
        world.net.loss = loss;
        world.begin();
        for _ in 0..200 {
            world.run(100 * MS);
            for side in 0..2 {
                let due = world.sides[side].poll_timeout();
                let (now, random) = (world.net.now, &mut world.net.dice);
                world.sides[side].handle_timeout(now, &mut |b| random.fill(b));
                prop_assert!(world.sides[side].poll_timeout().is_none_or(|at| at > now), "due {:?}", due);
            }
        }
    }
}
