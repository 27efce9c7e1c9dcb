//! `ping` towards a peer that is relayed at first: what ends it, and with which exit code.

use std::sync::atomic::{AtomicU32, Ordering};

use byway::api::server;
use byway::api::types::{Error, Path, PathKind, PingInfo, Request, Response};
use byway::model::id::PeerId;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::serving::serve;
use crate::told;

/// A peer `c` whose third probe goes directly, and `d` that stays behind the relay.
fn answer(request: Request) -> Result<Response, Error> {
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let Request::Ping { target, path, .. } = request else {
        unreachable!("{request:?}");
    };
    let direct = target == "c" && PROBES.fetch_add(1, Ordering::Relaxed) >= 2;
    let used = if direct {
        Path {
            kind: "direct".into(),
            carrier: Some("datagram".into()),
            via: Some("203.0.113.9:4100".into()),
            ..Path::default()
        }
    } else {
        Path {
            kind: "relay".into(),
            via: Some(PeerId([2; 32]).to_string()),
            via_name: Some("r".into()),
            reason: Some("udp-blocked".into()),
            remedy: Some("let it out".into()),
            ..Path::default()
        }
    };
    let answered = path.is_none_or(|kind: PathKind| kind.word() == used.kind);
    let rtt = answered.then_some(1.0);
    Ok(Response::Ping(PingInfo {
        target,
        peer_id: PeerId([3; 32]),
        address: None,
        sent: 1,
        received: u32::from(answered),
        control_rtt_ms: vec![Some(1.0)],
        rtt_ms: vec![rtt],
        path: used,
        over: None,
        absent: !answered,
        refused: vec![],
    }))
}

#[test]
fn a_ping_until_direct_ends_with_the_first_direct_answer_or_says_why_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let stop = CancellationToken::new();
    let listener = server::bind(&socket).unwrap();
    let serving = serve(listener, stop.clone(), || (), answer);
    let path = socket.display().to_string();
    let byway = |line: &str| {
        let words: Vec<&str> = ["--socket", &path]
            .into_iter()
            .chain(line.split(' '))
            .collect();
        told(&words)
    };

    let (code, out, err) = byway("ping c --until-direct -c 9");
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("3 sent, 3 received"), "{out}");

    let (code, _, err) = byway("ping d --until-direct -c 1");
    assert_eq!(code, 8);
    assert_eq!(
        err,
        "error: d is not reached directly after 1 probes: relay r (UDP blocked); let it out (E-NOT-DIRECT)\n  try:  byway doctor d\n"
    );
    // With JSON the one object is the answer, which has the reason.
    let (code, out, _) = byway("ping d --until-direct -c 1 --json");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &told["path"]["reason"]),
        (8, &Value::from("udp-blocked"))
    );

    // It is not asked again and again for what there is not.
    let (code, out, err) = byway("ping d --path direct -c 9");
    assert_eq!((code, out.as_str()), (8, ""));
    assert_eq!(
        err,
        "error: d is not reached directly: its path is relay r (UDP blocked); let it out (E-NO-PATH)\n  try:  byway doctor d\n"
    );
    let (code, _, err) = byway("ping c --path relay -c 1");
    assert_eq!(code, 8);
    assert!(
        err.starts_with("error: no relay is held ready for c: its path is direct udp"),
        "{err}"
    );
    assert_eq!(byway("ping d --path relay -c 1").0, 0);
    assert_eq!(byway("ping d --path there -c 1").0, 2);
    stop.cancel();
    serving.join().unwrap().unwrap();
}
