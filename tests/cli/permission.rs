//! Who may ask a daemon for anything.

use std::process::{Command, Output};

/// Needs root, to become somebody else.
#[test]
#[ignore = "needs root"]
fn a_stranger_is_not_permitted() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::sync::Arc;

    use byway::api::server;
    use byway::api::types::{Done, Response};

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
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone();
    let serving = std::thread::spawn(move || {
        let done = || {
            Ok(Response::Done(Done {
                message: "done".into(),
                changed: true,
            }))
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(server::run(
                listener,
                Arc::new(move |_, _| Box::pin(async move { done() })),
                stopped,
            ))
    });
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
    assert!(stderr.ends_with("permission denied (E-PERMISSION)\n  try:  usermod -aG byway,byway-admin USER      (or run it as root; byway alone may only look)\n"), "{stderr}");
    // Even where the file lets everybody in, the daemon asks the kernel who it is.
    open(&socket, 0o666);
    assert_eq!(
        asked(4_000_000),
        (
            Some(4),
            "error: user 4000000 may not change anything here: that takes root or group byway-admin (E-PERMISSION)\n  \
             try:  usermod -aG byway-admin USER\n"
                .to_owned()
        )
    );
    assert_eq!(asked(0), (Some(0), String::new()));
    stop.cancel();
    serving.join().unwrap().unwrap();
}
