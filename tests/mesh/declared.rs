//! Memberships that the configuration declares: begun beside everything else, and followed when it is read again.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use byway::api::types::Request;
use byway::config::DeclaredSubnet;
use byway::model::id::SubnetId;

use super::node::{Home, PATIENCE};

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
    let declared = (0..MANY).map(|n| DeclaredSubnet {
        id: Some(unknown(n)),
        ..DeclaredSubnet::default()
    });
    let node = Home::new("node")
        .start_with(|config| config.subnets = declared.collect())
        .await;
    let home = tokio::time::timeout(PATIENCE, node.stop()).await.unwrap();
    home.start().await.stop().await;
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
    let table = format!("[[subnet]]\ninvite_file = \"{}\"\n", invite.display());
    write(&file, &[table]);
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
