//! After a restart, a lost path or a lost stream there is a session again.

use super::*;

#[test]
fn without_a_stream_the_questions_become_rare() {
    let mut world = World::new(1);
    world.stream = false;
    world.connect();
    let mut asked = 0;
    for _ in 0..3600 {
        world.seconds(1);
        asked += world
            .net
            .events
            .values()
            .filter(|e| matches!(e, Event::Ask { .. }))
            .count();
    }
    assert!(asked < 200, "{asked}");
    world.stream = true;
    world.connect();
    world.seconds(15);
    world.assert_joined();
}

#[test]
fn a_peer_that_restarted_gets_a_session() {
    for end in 0..2 {
        let mut world = World::live(1);
        world.seconds(30);
        let first = world.id(1 - end);
        world.restart(end);
        world.call(end, |s, now, entropy| s.connected(now, entropy));
        world.seconds(1);
        world.traffic();
        world.seconds(2);
        world.assert_joined();
        assert_ne!(world.id(1 - end), first);
        world.seconds(400);
        world.assert_joined();
    }
}

#[test]
fn a_peer_that_restarted_at_once_and_in_the_middle_gets_a_session() {
    for seed in 1..100 {
        let mut world = World::new(seed);
        world.net.delay = 300;
        world.connect();
        for _ in 0..4 {
            let wait = world.net.dice.below(900);
            world.run(Duration::from_millis(wait));
            let end = world.net.dice.below(2) as usize;
            world.restart(end);
            world.call(end, |s, now, entropy| s.connected(now, entropy));
        }
        world.traffic();
        world.seconds(30);
        world.assert_joined();
    }
}

/// One end forgets what it had, was refused until then or has just been served, and is back: as where its clock was wrong.
#[test]
fn who_forgot_its_session_has_one_within_three_seconds() {
    for end in 0..2 {
        let back = |world: &mut World| {
            world.restart(end);
            world.call(end, |s, now, entropy| s.connected(now, entropy));
        };
        let mut world = World::live(1);
        back(&mut world);
        world.seconds(3);
        world.assert_joined();

        // The other end was refused for so long that it asks once a minute, and its question of this moment is refused.
        let mut world = World::live(1);
        world.stream = false;
        world.seconds(3);
        world.call(1 - end, |s, now, entropy| s.path_lost(now, entropy));
        world.seconds(170);
        let other = &mut world.ends[1 - end].session;
        (other.asking, other.again) = (None, None);
        world.call(1 - end, |s, now, entropy| s.path_lost(now, entropy));
        let asked = world
            .net
            .events
            .iter()
            .find(|(_, e)| matches!(e, Event::Ask { from, .. } if *from == 1 - end));
        let asked = *asked.expect("a question").0;
        let Some(Event::Ask { life, .. }) = world.net.events.remove(&asked) else {
            unreachable!()
        };
        world.net.after(
            Duration::from_millis(200),
            Event::Answer {
                to: 1 - end,
                life,
                message: None,
            },
        );
        world.stream = true;
        back(&mut world);
        world.seconds(3);
        world.assert_joined();
    }
}

#[test]
fn a_lost_path_gets_new_keys_over_the_stream() {
    for end in 0..2 {
        let mut world = World::live(1);
        let first = world.id(0);
        world.call(end, |s, now, entropy| s.path_lost(now, entropy));
        world.seconds(10);
        world.traffic();
        world.seconds(2);
        world.assert_joined();
        assert_ne!(world.id(0), first);
        assert_eq!(world.unopened, 0);
    }
}
