//! Every answer as people see it, exactly; arguments as requests; a whole call through the socket.

mod dns;
mod hints;
mod map;
mod member;
mod peer;
mod reach;
mod relay;
mod status;
mod subnet;
mod workload;

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::api::server;
use crate::api::types::*;
use crate::model::id::{Name, PeerId, SubnetId};

const NOW: u64 = 1_700_000_000;
const STYLE: Style = Style {
    colour: false,
    now: NOW,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn id() -> SubnetId {
    "7q3km2wd9xra4ce8yn5t0vbz6g".parse().unwrap()
}

fn path(kind: &str, carrier: &str, transport: &str, via: &str, reason: &str) -> Path {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    Path {
        kind: kind.into(),
        carrier: text(carrier),
        transport: text(transport),
        via: text(via),
        reason: text(reason),
        since: NOW - 3600,
        ..Path::default()
    }
}

#[track_caller]
fn shows(response: Response, want: &str) {
    assert_eq!(render(&response, STYLE), want);
}

fn parsed(line: &str) -> Verb {
    Cli::try_parse_from(line.split(' '))
        .unwrap_or_else(|e| panic!("{line}: {e}"))
        .verb
        .unwrap()
}

#[test]
fn a_line_of_an_answer_stays_one_line() {
    shows(
        Response::Done(Done {
            message: "left\nlab".into(),
            changed: true,
        }),
        "left\\u{a}lab\n",
    );
}

#[test]
fn global_options_stand_before_or_after_the_verb() {
    for line in [
        "byway --json --socket /s status lab",
        "byway status --socket /s lab --json",
    ] {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert!(
            cli.global.json && cli.global.socket.as_deref() == Some(std::path::Path::new("/s")),
            "{line}"
        );
    }
}

#[test]
fn the_grammar_is_sound() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

/// A daemon that answers `status`, leaves every join pending and every ping unanswered, and knows nothing else.
fn answer(request: Request) -> Result<Response, Error> {
    match request {
        Request::Status { .. } => {
            let mut status = status::status();
            status.problems.push(Problem {
                code: "E".into(),
                severity: "error".into(),
                message: "no nft".into(),
                help: "apt install nftables".into(),
            });
            Ok(Response::Status(Box::new(status)))
        }
        Request::Join { .. } => Ok(Response::Joined(Joined {
            id: id(),
            name: None,
            state: SubnetState::Pending,
            addresses: vec![],
            interface: None,
            member: None,
            fingerprint: None,
            host: Default::default(),
            invite: false,
            ignored: vec![],
            terms: None,
        })),
        Request::Ping { target, .. } => Ok(Response::Ping(PingInfo {
            target,
            peer_id: PeerId([1; 32]),
            address: None,
            sent: 1,
            received: 0,
            control_rtt_ms: vec![None],
            rtt_ms: vec![None],
            path: path("offline", "", "", "", ""),
            over: None,
            absent: false,
            refused: vec![],
        })),
        _ => Err(Error::new(
            ErrorKind::NotFound,
            "E-NOT-FOUND",
            "there is no such thing",
        )),
    }
}

/// Answers at a socket until `stop`.
fn serve(
    socket: &std::path::Path,
    stop: tokio_util::sync::CancellationToken,
    answer: fn(Request) -> Result<Response, Error>,
) -> std::thread::JoinHandle<anyhow::Result<()>> {
    let listener = server::bind(socket).unwrap();
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(server::run(
                listener,
                Arc::new(move |request, _| Box::pin(async move { answer(request) })),
                stop,
            ))
            .map_err(Into::into)
    })
}

#[test]
fn a_daemon_that_only_relays_is_not_told_to_found_a_subnet() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = serve(&socket, stop.clone(), |request| match request {
        Request::SubnetLs => Ok(Response::Subnets { subnets: vec![] }),
        Request::Status { .. } => Ok(Response::Status(Box::new(Status {
            relay_only: true,
            ..status::status()
        }))),
        request => panic!("{request:?}"),
    });
    for verb in ["member ls", "lease ls", "dns ls"] {
        let line = format!("byway --socket {} {verb}", socket.display());
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        match left_out::parse(&words) {
            Err(left_out::Refused::Own(error)) => {
                assert_eq!(error.code, "E-RELAY-ONLY", "{verb}: {error}");
                assert!(!error.hint.contains("create"), "{verb}: {error}");
            }
            _ => panic!("{verb} was taken"),
        }
    }
    stop.cancel();
    serving.join().unwrap().unwrap();
}

#[test]
fn exit_codes_tell_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = serve(&socket, stop.clone(), answer);
    let entry = Entry {
        run: |_| Err(anyhow::anyhow!("outer").context("started")),
        preflight: |_| Err(Error::new(ErrorKind::Failed, "E-TUN", "no /dev/net/tun")),
        cleanup: |_, _, _| {
            Err(Error::new(
                ErrorKind::Conflict,
                "E-STATE-IN-USE",
                "a daemon runs there",
            ))
        },
    };
    let code = |line: &str| {
        let line = format!("byway --quiet --socket {} {line}", socket.display());
        run(line.split(' ').map(OsString::from), entry)
    };
    assert_eq!(code("status"), 0);
    assert_eq!(code("status --check live"), 0);
    assert_eq!(code("status --check ready"), 0);
    assert_eq!(code("status --check healthy"), 9);
    assert_eq!(code(&format!("join {}", id())), 7);
    assert_eq!(code("ping b -c 1"), 8);
    assert_eq!(code("subnet show lab"), 5);
    assert_eq!(code("subnet show a.b"), 2);
    assert_eq!(code("version"), 0);
    assert_eq!(code("daemon --check"), 1);
    assert_eq!(code("cleanup"), 6);
    assert_eq!(code("daemon --config /nowhere/byway.toml"), 2);
    stop.cancel();
    serving.join().unwrap().unwrap();
    assert_eq!(code("status"), 3);
}
