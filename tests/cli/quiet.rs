//! What `--quiet` leaves out, and what is told beside an answer.

use byway::api::server;
use byway::api::types::{Error, ErrorKind, Request, Response};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::serving::serve;
use crate::told;

const PEER: &str = "12D3KooWRtubMQkmrjdgVrmhQfGHWuuCGPGowi2DbM8i7wUqanna";

fn of(value: Value) -> Result<Response, Error> {
    Ok(serde_json::from_value(value).unwrap())
}

/// A daemon with something wrong.
fn answer(request: Request) -> Result<Response, Error> {
    match request {
        Request::Create { .. } => of(json!({
            "schema": "byway.create/1", "id": "7q3km2wd9xra4ce8yn5t0vbz6g", "name": "lab", "cidr4": null, "cidr6": null,
            "addresses": [], "interface": "bw-lab", "invite": "byway1create", "member": "a",
        })),
        Request::InviteCreate { .. } => of(json!({
            "schema": "byway.invite/1", "id": "3fa91c07", "invite": "byway1more", "uses": 1, "expires": 9,
        })),
        Request::Id => of(json!({
            "schema": "byway.id/1", "peer_id": PEER, "name": "a", "fingerprint": "f", "addresses": [],
        })),
        Request::Metrics => Ok(Response::Metrics {
            text: "up 1\n".to_owned(),
        }),
        Request::DnsQuery { .. } => Ok(Response::Dns { records: vec![] }),
        Request::Ping { .. } => of(json!({
            "schema": "byway.ping/1", "target": "b", "peer_id": PEER, "address": null, "sent": 1, "received": 1,
            "control_rtt_ms": [1.0], "rtt_ms": [1.0],
            "path": {"kind": "direct", "carrier": null, "transport": null, "via": null, "reason": null, "since": 0},
        })),
        Request::Status { .. } => of(json!({
            "schema": "byway.status/1", "peer_id": PEER, "name": "a", "version": "0", "ready": true, "uptime_s": 1,
            "sealing": "", "subnets": [],
            "problems": [{"code": "E", "severity": "error", "message": "no nft", "help": "apt install nftables"}],
        })),
        Request::Config => Err(Error::new(
            ErrorKind::NotPermitted,
            "E-PERMISSION",
            "user 1000 may not look here",
        )),
        _ => of(json!({"schema": "byway.done/1", "message": "done", "changed": true})),
    }
}

/// Runs the check against that daemon; a line of words is typed behind its socket.
fn with_daemon(check: impl FnOnce(&dyn Fn(&str) -> (i32, String, String))) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let stop = CancellationToken::new();
    let listener = server::bind(&socket).unwrap();
    let serving = serve(listener, stop.clone(), || (), answer);
    let path = socket.display().to_string();
    check(&|line| {
        let words: Vec<&str> = ["--socket", &path]
            .into_iter()
            .chain(line.split(' '))
            .collect();
        told(&words)
    });
    stop.cancel();
    serving.join().unwrap().unwrap();
}

#[test]
fn quiet_leaves_out_what_was_done_and_never_what_was_asked_for() {
    with_daemon(|byway| {
        for done in ["reload", "up lab", "dns rm lab web", "status --check ready"] {
            assert_eq!(
                byway(&format!("{done} --quiet")),
                (0, String::new(), String::new()),
                "{done}"
            );
            assert_ne!(byway(done).1, "", "{done}");
        }
        for asked in [
            "id",
            "id --json",
            "metrics",
            "dns query web",
            "status",
            "status --json",
            "version",
        ] {
            let (code, loud, _) = byway(asked);
            assert!(code == 0 && !loud.is_empty(), "{asked}");
            assert_eq!(
                byway(&format!("{asked} --quiet")),
                (0, loud, String::new()),
                "{asked}"
            );
        }
        let summary = byway("ping b -c 1 --quiet").1;
        assert!(
            summary.starts_with("--- b ---\n1 sent, 1 received"),
            "{summary}"
        );
        // A secret that no verb shows again, alone for a script to take.
        assert_eq!(byway("create lab --quiet").1, "byway1create\n");
        assert_eq!(byway("invite create lab --quiet").1, "byway1more\n");
        let object: Value =
            serde_json::from_str(&byway("invite create lab --quiet --json").1).unwrap();
        assert_eq!(object["id"], "3fa91c07");
        // Where it failed its words stay.
        let (code, stdout, stderr) = byway("status --check healthy --quiet");
        assert_eq!((code, stdout.as_str()), (9, ""));
        assert!(stderr.contains("no nft"), "{stderr}");
    });
}

#[test]
fn a_daemon_that_does_not_tell_its_configuration_is_named() {
    with_daemon(|byway| {
        for line in [
            "config show --effective",
            "config show --effective --quiet --json",
        ] {
            let (code, stdout, stderr) = byway(line);
            assert!(code == 0 && stdout.contains("dns.mode"), "{line}: {stdout}");
            assert_eq!(
                stderr,
                "note: this is what the files say, the daemon did not tell: user 1000 may not look here (E-PERMISSION)\n",
                "{line}"
            );
        }
    });
    // Where none runs, the files are all there is.
    let none = told(&["config", "show", "--effective", "--socket", "/nowhere/s"]);
    assert_eq!((none.0, none.2), (0, String::new()));
}
