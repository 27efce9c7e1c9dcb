//! A path that leaves by a helper socket of the port.

use super::*;

/// Answers every probe that goes by that way.
fn answer(paths: &mut Paths, now: Instant, to: Remote, dice: &mut Dice) {
    let mut tokens = Vec::new();
    while let Some(output) = paths.poll() {
        if let Output::Probe { pair, token, .. } = output
            && pair.remote == to
        {
            tokens.push(token);
        }
    }
    for token in &tokens {
        paths.on_answer(now, to.into(), *token, &mut |bytes: &mut [u8]| {
            dice.fill(bytes)
        });
    }
}

#[test]
fn the_helper_that_a_probe_came_by_carries_the_path_until_it_is_closed() {
    let (mut paths, start) = (Paths::new(), some_moment());
    let peer = address("198.51.100.7:4100");
    let by = |helper| Remote {
        helper: Some(helper),
        ..Remote::from(peer)
    };
    paths.offer(start, &[peer], Origin::Told, &[]);
    paths.start(start);
    let mut dice = Dice::new(5);
    paths.handle_timeout(start, &mut |bytes: &mut [u8]| dice.fill(bytes));
    while paths.poll().is_some() {}
    // Two of them are met.
    for helper in [7, 8] {
        paths.on_probe(start, from(by(helper)), 1, &[]);
        let answered = Output::Answer {
            pair: from(by(helper)),
            token: 1,
        };
        assert_eq!(paths.poll(), Some(answered), "the way it came");
    }
    let mut now = start;
    while paths.path().is_none() {
        now += 50 * MS;
        assert!(now < start + 5 * SECOND);
        paths.handle_timeout(now, &mut |bytes: &mut [u8]| dice.fill(bytes));
        answer(&mut paths, now, by(7), &mut dice);
    }
    assert_eq!(paths.path().unwrap().pair.remote, by(7));
    let helpers = |paths: &Paths| {
        let mut all: Vec<_> = paths.tried().filter_map(|t| t.remote.helper).collect();
        all.sort();
        all
    };
    assert_eq!(helpers(&paths), [7, 8]);
    paths.drop_helpers(now, |helper| helper == 8);
    assert_eq!(paths.path().unwrap().pair.remote, by(7));
    assert_eq!(helpers(&paths), [7]);
    paths.drop_helpers(now, |helper| helper == 7);
    assert_eq!(paths.path(), None);
    assert_eq!(paths.history().last().unwrap().cause, Cause::HelperGone);
    assert_eq!(
        paths.tried().count(),
        1,
        "the address itself is still tried"
    );
}
