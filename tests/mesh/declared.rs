//! Memberships that the configuration declares: begun beside everything else, and followed when it is read again.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use byway::api::types::{ConfigSubnet, Request, Response, SubnetStatus};
use byway::config::{Config, DeclaredSubnet};
use byway::model::id::SubnetId;

use super::node::{Home, Node, PATIENCE, until};

/// So many that begun one after the other they would take longer than any wait here: half a second each.
const MANY: u8 = 60;

/// The ID of a subnet that nobody answers for.
fn unknown(n: u8) -> SubnetId {
    SubnetId([n; 16])
}

fn write(file: &Path, tables: &[String]) {
    std::fs::write(file, format!("version = 1\n{}", tables.concat())).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_heard_while_the_declared_subnets_are_begun() {
    // To begin all of them takes several seconds, however fast the machine is.
    let all = 240;
    let declared = (0..all).map(|n| DeclaredSubnet {
        id: Some(unknown(n)),
        ..DeclaredSubnet::default()
    });
    let node = Home::new("node")
        .start_with(|config| config.subnets = declared.collect())
        .await;
    let home = tokio::time::timeout(PATIENCE, node.stop()).await.unwrap();
    let node = home.start().await;
    let begun = node.status().await.subnets.len();
    assert!(begun < usize::from(all), "all {begun} were begun");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_begins_many_declared_subnets_at_once() {
    let home = Home::new("node");
    let file = home.file("byway.toml");
    write(&file, &[]);
    let named = file.clone();
    let node = home
        .start_with(|config| config.sources.file = Some(named))
        .await;
    let tables: Vec<String> = (0..MANY)
        .map(|n| format!("[[subnet]]\nid = \"{}\"\n", unknown(n)))
        .collect();
    write(&file, &tables);
    let told = tokio::time::timeout(PATIENCE, node.ok(Request::Reload)).await;
    let told = format!("{:?}", told.unwrap());
    for n in 0..MANY {
        assert!(
            told.contains(&format!("asked to join {}", unknown(n))),
            "{told}"
        );
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_invite_that_is_a_fifo_holds_no_reload_up() {
    let home = Home::new("node");
    let (file, invite) = (home.file("byway.toml"), home.file("invite"));
    nix::unistd::mkfifo(&invite, nix::sys::stat::Mode::S_IRWXU).unwrap();
    write(&file, &[]);
    let named = file.clone();
    let node = home
        .start_with(|config| config.sources.file = Some(named))
        .await;
    write(&file, &[table(&invite)]);
    let told = tokio::time::timeout(PATIENCE, node.call(Request::Reload)).await;
    // Whoever waits for a writer has one now.
    let _writer = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&invite);
    let error = told.unwrap().unwrap_err();
    assert!(error.message.contains("it is no regular file"), "{error}");
    node.stop().await;
}

/// A table for the invite in this file.
fn table(invite: &Path) -> String {
    format!("[[subnet]]\ninvite_file = \"{}\"\n", invite.display())
}

/// What this node is in, with where that comes from.
async fn standing(node: &Node) -> Vec<ConfigSubnet> {
    match node.ok(Request::Config).await {
        Response::Config(shown) => shown
            .subnets
            .into_iter()
            .filter(|s| s.up.is_some())
            .collect(),
        other => panic!("{other:?}"),
    }
}

async fn is_in(node: &Node, id: SubnetId) -> bool {
    standing(node).await.iter().any(|s| s.id == Some(id))
}

async fn reloaded(node: &Node) -> String {
    format!("{:?}", node.ok(Request::Reload).await)
}

/// A signal that comes while a file is being written has half of it read: that must not end a membership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_a_file_leaves_nothing_and_what_is_declared_no_more_is_left_by_a_second_reading() {
    let founder = Node::start("founder").await;
    let home = Home::new("node");
    let file = home.file("byway.toml");
    let (mut tables, mut ids) = (vec![], vec![]);
    for name in ["one", "two", "three"] {
        let (created, invite) = (founder.create(name).await, home.file(name));
        std::fs::write(&invite, created.invite.unwrap()).unwrap();
        tables.push(table(&invite));
        ids.push(created.id);
    }
    write(&file, &tables);
    let named = file.clone();
    let node = home
        .start_with(|config| {
            config.sources.file = Some(named.clone());
            config.subnets = Config::load(&config.sources).unwrap().subnets;
        })
        .await;
    for id in &ids {
        until("it is in the declared subnet", || is_in(&node, *id)).await;
    }
    write(&file, &tables[..1]);
    let told = reloaded(&node).await;
    let leaves = |id: &SubnetId| format!("{id} is declared no more: it is left in");
    assert!(told.contains(&leaves(&ids[1])), "{told}");
    assert!(told.contains(&leaves(&ids[2])), "{told}");
    // The second reading leaves, and takes over nothing: somebody may be editing the file.
    let edited = format!("[[subnet]]\nid = \"{}\"\n", unknown(1));
    let again = [tables[0].clone(), tables[1].clone(), edited];
    write(&file, &again);
    until("what is still not declared is left", || async {
        !is_in(&node, ids[2]).await
    })
    .await;
    assert!(is_in(&node, ids[0]).await && is_in(&node, ids[1]).await);
    let is_edited = |s: &SubnetStatus| s.id == unknown(1);
    assert!(!node.status().await.subnets.iter().any(is_edited));
    let told = reloaded(&node).await;
    assert!(
        told.contains(&format!("asked to join {}", unknown(1))),
        "{told}"
    );
    ids.truncate(2);
    write(&file, &[]);
    let told = reloaded(&node).await;
    assert!(ids.iter().all(|id| told.contains(&leaves(id))), "{told}");
    until("all that was declared is left", || async {
        standing(&node).await.is_empty()
    })
    .await;
    node.stop().await;
    founder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_created_or_joined_by_hand_stays_when_it_is_declared_no_more() {
    let founder = Node::start("founder").await;
    let home = Home::new("node");
    let file = home.file("byway.toml");
    write(&file, &[]);
    let named = file.clone();
    let node = home
        .start_with(|config| config.sources.file = Some(named))
        .await;
    let by_file = founder.create("by-file").await;
    let invite = node.file("invite");
    std::fs::write(&invite, by_file.invite.unwrap()).unwrap();
    let of = |id: SubnetId| format!("[[subnet]]\nid = \"{id}\"\n");
    write(&file, &[table(&invite)]);
    reloaded(&node).await;
    until("it is in the declared subnet", || async {
        is_in(&node, by_file.id).await
    })
    .await;
    let by_hand = founder.create("by-hand").await;
    node.join(&by_hand.invite.unwrap(), &[], PATIENCE)
        .await
        .unwrap();
    // A person that joins what a declaration brought has it, too.
    let both = founder.create("both").await;
    let both_invite = node.file("both");
    std::fs::write(&both_invite, both.invite.unwrap()).unwrap();
    write(&file, &[table(&invite), table(&both_invite)]);
    reloaded(&node).await;
    until("it is in both", || async { is_in(&node, both.id).await }).await;
    node.join(&both.id.to_string(), &[], PATIENCE)
        .await
        .unwrap();
    let own = node.create("own").await.id;
    write(
        &file,
        &[of(by_hand.id), of(own), of(both.id), table(&invite)],
    );
    reloaded(&node).await;
    write(&file, &[]);
    let told = reloaded(&node).await;
    for id in [by_hand.id, own, both.id] {
        let stays = format!("{id} stays although it is declared no more");
        assert!(told.contains(&stays), "{told}");
    }
    until("what a declaration brought in is left", || async {
        !is_in(&node, by_file.id).await
    })
    .await;
    // Also where the daemon was started in between.
    write(&file, &[of(by_hand.id), of(own)]);
    let node = node
        .stop()
        .await
        .start_with(|config| {
            config.sources.file = Some(file.clone());
            config.subnets = Config::load(&config.sources).unwrap().subnets;
        })
        .await;
    write(&file, &[]);
    let told = reloaded(&node).await;
    assert!(!told.contains("it is left in"), "{told}");
    assert!(is_in(&node, by_hand.id).await && is_in(&node, own).await);
    node.stop().await;
    founder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_declared_no_more_when_the_daemon_stopped_is_left_by_the_next_readings() {
    let founder = Node::start("founder").await;
    let home = Home::new("node");
    let (file, invite) = (home.file("byway.toml"), home.file("invite"));
    let created = founder.create("lab").await;
    std::fs::write(&invite, created.invite.unwrap()).unwrap();
    write(&file, &[table(&invite)]);
    let start = async |home: Home| {
        let named = file.clone();
        home.start_with(|config| {
            config.sources.file = Some(named);
            config.subnets = Config::load(&config.sources).unwrap().subnets;
        })
        .await
    };
    let node = start(home).await;
    until("it is in the declared subnet", || is_in(&node, created.id)).await;
    write(&file, &[]);
    reloaded(&node).await;
    let node = start(node.stop().await).await;
    assert!(is_in(&node, created.id).await);
    let leaves = format!("{} is declared no more: it is left in", created.id);
    until("a reading finds it", || async {
        reloaded(&node).await.contains(&leaves)
    })
    .await;
    until("it is left", || async { !is_in(&node, created.id).await }).await;
    node.stop().await;
    founder.stop().await;
}
