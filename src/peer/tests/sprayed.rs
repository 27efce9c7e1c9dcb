//! What a peer does for a search: it says words, and guesses.

use super::*;

#[test]
fn guesses_that_meet_nobody_cost_neither_path_nor_key() {
    let mut world = World::live(31, 2);
    world.run(2 * SECOND);
    let (changes, before) = (world.ends[0].peer.path_changes(), world.ends[0].sent.0);
    for n in 0..2048_u16 {
        let to = SocketAddr::from(([198, 51, 100, 9], 2000 + n));
        world.call(0, |peer, _, entropy| peer.guess(to.into(), entropy));
        if n % 5 == 0 {
            world.run(20 * MS);
        }
    }
    assert!(world.ends[0].sent.0 - before >= 2048);
    assert!(world.all_up() && world.ends[0].peer.path_changes() == changes);
    assert_eq!(world.ends[0].peer.keys(subnet(1)).1, 1);
    // Where the overlay is, nobody is looked for.
    let overlay: Arc<[IpNet]> = Arc::new(["198.51.100.0/24".parse().unwrap()]);
    world.call(0, |peer, now, entropy| peer.avoid(now, overlay, entropy));
    let before = world.ends[0].sent.0;
    let to = SocketAddr::from(([198, 51, 100, 9], 2000));
    world.call(0, |peer, _, entropy| peer.guess(to.into(), entropy));
    assert_eq!(world.ends[0].sent.0, before);
}

#[test]
fn words_about_a_search_reach_the_other_end_on_the_path() {
    let mut world = World::live(32, 1);
    for word in [Spray::Ask, Spray::Go, Spray::Later] {
        world.call(0, |peer, _, _| peer.say(word));
        world.run(SECOND);
    }
    let said = [Spray::Ask, Spray::Go, Spray::Later];
    assert_eq!(world.ends[1].words, said);
    assert!(world.ends[0].words.is_empty());
}
