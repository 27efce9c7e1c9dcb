//! Who may ask a daemon for anything.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use byway::api::server;
use byway::api::types::{Done, Error, Request, Response};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio_util::sync::CancellationToken;

use crate::serving::serve;

fn done(_: Request) -> Result<Response, Error> {
    Ok(Response::Done(Done {
        message: "done".into(),
        changed: true,
    }))
}

/// In a mount namespace of its own, a group database that has our groups too.
fn with_groups(file: &Path, readers: u32, admins: u32) {
    let known = std::fs::read_to_string("/etc/group").unwrap();
    let others = known.lines().filter(|line| !line.starts_with("byway"));
    let all: Vec<String> = others
        .map(ToOwned::to_owned)
        .chain([
            format!("byway:x:{readers}:"),
            format!("byway-admin:x:{admins}:\n"),
        ])
        .collect();
    std::fs::write(file, all.join("\n")).unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some(file), "/etc/group", none, MsFlags::MS_BIND, none).unwrap();
}

/// In a mount namespace of its own, a device directory with nothing in it but a TUN device of this mode, whatever the
/// machine has.
fn with_tun(mode: u32) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(none, "/dev", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    std::fs::create_dir("/dev/net").unwrap();
    std::fs::write("/dev/net/tun", "").unwrap();
    std::fs::set_permissions("/dev/net/tun", PermissionsExt::from_mode(mode)).unwrap();
    std::fs::write("/dev/null", "").unwrap();
}

/// A service has groups of its own (SupplementaryGroups= of systemd) that its user has not. Needs root, to become somebody
/// else.
#[test]
#[ignore = "needs root"]
fn groups_that_only_the_process_has_count() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap()
    };
    open(dir.path(), 0o755);
    let program = dir.path().join("byway");
    std::fs::copy(env!("CARGO_BIN_EXE_byway"), &program).unwrap();
    open(&program, 0o755);
    let socket = dir.path().join("s");
    let listener = server::bind(&socket).unwrap();
    open(&socket, 0o666);
    let (stop, file) = (CancellationToken::new(), dir.path().join("group"));
    let groups = move || with_groups(&file, 4_000_010, 4_000_020);
    let serving = serve(listener, stop.clone(), groups, done);
    let asked = |verb: &str, groups: &str| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid", "4000000", "--regid", "4000000", "--groups", groups,
        ]);
        let command = command.arg(&program).args([verb, "--socket"]).arg(&socket);
        command.output().unwrap().status.code()
    };
    // More groups than are asked for at first, too.
    let many: Vec<String> = (5_000_000..5_000_100).map(|g| g.to_string()).collect();
    let many = many.join(",");
    for (groups, look, change) in [
        ("4000001", Some(4), Some(4)),
        ("4000001,4000010", Some(0), Some(4)),
        ("4000020,4000001", Some(0), Some(0)),
        (many.as_str(), Some(4), Some(4)),
        (&format!("{many},4000010"), Some(0), Some(4)),
        (&format!("4000020,{many}"), Some(0), Some(0)),
    ] {
        let found = (asked("id", groups), asked("reload", groups));
        assert_eq!(found, (look, change), "{groups}");
    }
    stop.cancel();
    serving.join().unwrap().unwrap();
}

/// Needs root, to become somebody else.
#[test]
#[ignore = "needs root"]
fn a_stranger_is_not_permitted() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap()
    };
    open(dir.path(), 0o755);
    // Where the program was built a stranger may not look.
    let program = dir.path().join("byway");
    std::fs::copy(env!("CARGO_BIN_EXE_byway"), &program).unwrap();
    open(&program, 0o755);
    let socket = dir.path().join("s");
    let listener = server::bind(&socket).unwrap();
    let stop = CancellationToken::new();
    let serving = serve(listener, stop.clone(), || (), done);
    let asked = |uid: u32| {
        let mut command = Command::new(&program);
        command
            .args(["reload", "--no-color", "--socket"])
            .arg(&socket)
            .uid(uid)
            .gid(uid);
        let Output { status, stderr, .. } = command.output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    let (code, stderr) = asked(4_000_000);
    assert_eq!(code, Some(4), "{stderr}");
    let there = |name| nix::unistd::Group::from_name(name).unwrap().is_some();
    let hint = match (there("byway"), there("byway-admin")) {
        (true, true) => {
            "  try:  usermod -aG byway,byway-admin USER      (or run it as root; byway alone may only look; [workloads] users attach what is their own)\n"
        }
        _ => "  try:  systemd-sysusers      (run it as root: this machine has no group byway",
    };
    assert!(
        stderr.contains(&format!("permission denied (E-PERMISSION)\n{hint}")),
        "{stderr}"
    );
    // Even where the file lets everybody in, the daemon asks the kernel who it is.
    open(&socket, 0o666);
    let (code, stderr) = asked(4_000_000);
    let hint = match there("byway-admin") {
        true => "  try:  usermod -aG byway-admin USER\n",
        false => {
            "  try:  systemd-sysusers      (run it as root: this machine has no group byway-admin,"
        }
    };
    let told = "error: user 4000000 may not change anything here: that takes root or group byway-admin (E-PERMISSION)\n";
    assert!(
        code == Some(4) && stderr.starts_with(&format!("{told}{hint}")),
        "{stderr}"
    );
    assert_eq!(asked(0), (Some(0), String::new()));
    stop.cancel();
    serving.join().unwrap().unwrap();
}

/// Needs root, to become somebody else.
#[test]
#[ignore = "needs root"]
fn a_daemon_without_rights_is_not_permitted() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap()
    };
    open(dir.path(), 0o777);
    let program = dir.path().join("byway");
    std::fs::copy(env!("CARGO_BIN_EXE_byway"), &program).unwrap();
    open(&program, 0o755);
    let asked = |mode| {
        std::thread::scope(|scope| {
            let run = || {
                with_tun(mode);
                let mut command = Command::new(&program);
                command
                    .args(["daemon", "--check", "--state-dir"])
                    .arg(dir.path());
                command.uid(4_000_000).gid(4_000_000).output().unwrap()
            };
            scope.spawn(run).join().unwrap()
        })
    };
    for (mode, code) in [(0o600, "(E-NO-TUN)"), (0o666, "(E-NO-NET-ADMIN)")] {
        let output = asked(mode);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(4) && stderr.contains(code),
            "{mode:o}: {output:?}"
        );
    }
}
