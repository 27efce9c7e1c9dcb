//! `doctor`: how a peer is reached, or all of them, why not better, and what to do about it.

use super::Report;
use super::netcheck::netcheck;
use super::paths::sessions;
use super::peers::{peer_list, peer_show};
use super::reach::{ends, facts};
use super::reason::{Reason, reason};
use super::status::{no_link, status};
use crate::api::types::{Diagnosis, DoctorInfo, Error, Path, PeerInfo, Problem};
use crate::link::direct::DirectStatus;
use crate::model::error::Code;

/// Looks at one peer, or at everything.
///
/// # Errors
/// `E-NO-PEER`, `E-AMBIGUOUS`, as `peer show`.
pub(crate) async fn doctor(ctx: &Report, peer: Option<String>) -> Result<DoctorInfo, Error> {
    let all = match &peer {
        Some(text) => vec![peer_show(ctx, text).await?],
        None => peer_list(ctx).await?,
    };
    let found = sessions(ctx).await;
    let (mut peers, mut findings) = (Vec::new(), Vec::new());
    let me = ctx.peers.peer();
    let link = no_link(ctx);
    let proxy = super::proxy::problem(ctx);
    // A stranger that is connected, as a relay is, is none of the peers that packets go to.
    let members = |info: &PeerInfo| peer.is_some() || !info.names.is_empty();
    for info in all
        .into_iter()
        .filter(|info| info.peer_id != me && members(info))
    {
        let session = found
            .iter()
            .find(|(key, _)| key.peer == info.peer_id)
            .map(|(_, session)| session);
        let (mut diagnosis, mut finding) = diagnose(ctx, info, session);
        if let Some(proxy) = &proxy {
            blame_proxy(&mut diagnosis, finding.as_mut(), proxy);
        }
        match &link {
            Some(link) => blame_link(&mut diagnosis, link),
            None => findings.extend(finding),
        }
        peers.push(diagnosis);
    }
    let mut router = None;
    if peer.is_some() {
        findings.extend(link);
    } else {
        let around = netcheck(ctx).await?;
        findings.extend(around.findings);
        router = around.router;
        let problems = status(ctx, None).await?.problems;
        // The findings of the peers and of `netcheck` say these already.
        let said = [
            Code::Relayed,
            Code::UdpUnanswered,
            Code::NoLink,
            Code::PortMapping,
            Code::Proxy,
            Code::Crowded,
        ];
        let said = said.map(|code| code.as_str());
        findings.extend(
            problems
                .into_iter()
                .filter(|p| !said.contains(&p.code.as_str())),
        );
    }
    Ok(DoctorInfo {
        done: Vec::new(),
        peers,
        router,
        findings,
    })
}

/// Says that a peer which is not reached well is not to blame: no link of this machine leads anywhere.
fn blame_link(diagnosis: &mut Diagnosis, link: &Problem) {
    if diagnosis.cause.is_some() {
        diagnosis.cause = Some(link.message.clone());
        diagnosis.path.remedy = Some(link.help.clone());
    }
}

/// Says of a peer that is not reached what the proxy said on the way there: nothing may be wrong at the peer.
fn blame_proxy(diagnosis: &mut Diagnosis, finding: Option<&mut Problem>, proxy: &Problem) {
    if diagnosis.path.kind != "offline" {
        return;
    }
    if let Some(cause) = &mut diagnosis.cause {
        *cause = format!("{cause}; {}", proxy.message);
    }
    diagnosis.path.remedy = Some(proxy.help.clone());
    if let Some(finding) = finding {
        finding.message = format!("{}; {}", finding.message, proxy.message);
        finding.help.clone_from(&proxy.help);
    }
}

/// The help of a finding that passes without anybody's doing.
const STILL_SOUGHT: &str = "nothing to do: the search goes on by itself";

/// How grave a finding is, by whether it passes by itself.
fn severity(passes: bool) -> &'static str {
    if passes { "info" } else { "warning" }
}

fn finding(code: Code, severity: &str, message: String, help: String) -> Problem {
    Problem {
        code: code.into(),
        severity: severity.into(),
        message,
        help,
    }
}

/// Why a member is offline, and what to do about it.
fn offline(name: &str, path: &Path) -> (String, String) {
    match path.reason.as_deref() {
        Some("no-address") => (
            format!("no address of {name} is known"),
            format!(
                "byway peer connect HOST      (where {name} is), or name a relay that both reach in transport.bootstrap"
            ),
        ),
        Some("not-reached") => (
            format!(
                "{name} was not reached at {}",
                path.via
                    .as_ref()
                    .map_or("its addresses".to_owned(), |_| path.places())
            ),
            format!(
                "see that byway runs at {name} and that port 4100 is let through, or name a relay that both reach in transport.bootstrap"
            ),
        ),
        _ => (
            format!("{name} is not connected"),
            format!("see that byway runs at {name}"),
        ),
    }
}

fn diagnose(
    ctx: &Report,
    info: PeerInfo,
    session: Option<&DirectStatus>,
) -> (Diagnosis, Option<Problem>) {
    let name = info
        .names
        .first()
        .cloned()
        .unwrap_or_else(|| info.peer_id.short());
    let mut path = info.path;
    let facts = facts(ctx, session, path.since);
    let why = reason(&facts);
    let (cause, finding) = match (path.kind.as_str(), path.carrier.as_deref()) {
        ("relay", _) => {
            let cause = why.cause(&name, &facts);
            let severity = severity(!why.is_a_problem());
            let help = path.remedy.clone().unwrap_or_else(|| STILL_SOUGHT.into());
            let message = format!("{name} is relayed because {cause}");
            let finding = finding(Code::Relayed, severity, message, help);
            (Some(cause), Some(finding))
        }
        // Over a stream although it is direct: why no datagrams pass.
        ("direct", Some("stream")) if session.is_some_and(|s| s.cipher.is_some()) => {
            let cause = why.cause(&name, &facts);
            let severity = severity(why == Reason::Probing);
            path.remedy = why.remedy(&name);
            let help = path.remedy.clone().unwrap_or_else(|| STILL_SOUGHT.into());
            let message = format!("packets to {name} go over a stream, which is slower: {cause}");
            let finding = finding(Code::UdpUnanswered, severity, message, help);
            (Some(cause), Some(finding))
        }
        ("offline", _) => {
            let (cause, help) = offline(&name, &path);
            path.remedy = Some(help.clone());
            let message = format!("{name} is offline: {cause}");
            let finding = finding(Code::NotReached, "warning", message, help);
            (Some(cause), Some(finding))
        }
        _ => (None, None),
    };
    let (here, there) = session.map(ends).unzip();
    let there = there.flatten();
    let diagnosis = Diagnosis {
        peer_id: info.peer_id,
        name,
        path,
        cause,
        here,
        there,
        tried: info.tried,
        changes: info.changes,
    };
    (diagnosis, finding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::PeerId;

    #[test]
    fn a_peer_is_not_blamed_for_links_of_this_machine() {
        let mut diagnosis = Diagnosis {
            peer_id: PeerId([1; 32]),
            name: "b".into(),
            path: Path {
                kind: "offline".into(),
                remedy: Some("see that byway runs at b".into()),
                ..Path::default()
            },
            cause: Some("b was not reached".into()),
            here: None,
            there: None,
            tried: vec![],
            changes: vec![],
        };
        let proxy = Problem {
            code: Code::Proxy.into(),
            severity: "warning".into(),
            message: "nothing goes through the proxy".into(),
            help: "set transport.proxy".into(),
        };
        let mut behind = diagnosis.clone();
        blame_proxy(&mut behind, None, &proxy);
        assert_eq!(
            behind.cause.unwrap(),
            "b was not reached; nothing goes through the proxy"
        );
        assert_eq!(behind.path.remedy.as_ref(), Some(&proxy.help));
        let link = Problem {
            code: Code::NoLink.into(),
            severity: "warning".into(),
            message: "no link of this machine leads anywhere: eth0 is down".into(),
            help: "ip link set eth0 up".into(),
        };
        blame_link(&mut diagnosis, &link);
        assert_eq!(diagnosis.cause.as_ref(), Some(&link.message));
        assert_eq!(diagnosis.path.remedy.as_ref(), Some(&link.help));
        // What works has no cause, and gets none.
        diagnosis.cause = None;
        diagnosis.path.remedy = None;
        blame_link(&mut diagnosis, &link);
        assert_eq!((diagnosis.cause, diagnosis.path.remedy), (None, None));
    }
}
