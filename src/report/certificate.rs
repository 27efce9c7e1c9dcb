//! What is said of the certificate that is shown inside TLS. Members are known by their keys and look at none; a proxy that
//! looks inside may refuse one that has ended.

use super::Report;
use crate::api::types::Problem;
use crate::model::error::Code;
use crate::node::{Nearness, nearness, unix_now};
use crate::p2p::CertificateStatus;

/// What is not well with the certificate that this node shows.
pub(super) fn problems(ctx: &Report) -> Vec<Problem> {
    let status = ctx.peers.certificate();
    status.map_or_else(Vec::new, |status| judge(&status, unix_now()))
}

/// What is not well at `now`, in Unix seconds.
fn judge(status: &CertificateStatus, now: u64) -> Vec<Problem> {
    let problem = |message: String, help: &str| Problem {
        code: Code::Certificate.into(),
        severity: "warning".into(),
        message,
        help: help.to_owned(),
    };
    let failed = status.failure.as_ref().map(|why| {
        problem(
            format!("the certificate of transport.tls_cert was not taken over, and the one before is still shown: {why}"),
            "byway reload      (once both files are whole and belong together)",
        )
    });
    let when = status.files.as_ref().zip(status.valid);
    let old = when.and_then(|(files, (from, until))| {
        let said = outside(now, from, until)?;
        let path = files.chain.display();
        Some(problem(
            format!("the certificate {path} {said}; members do not mind, a proxy that looks inside TLS may"),
            "renew it, then: byway reload",
        ))
    });
    failed.into_iter().chain(old).collect()
}

/// What a certificate is that is valid from and until these Unix seconds and will not be for long, or is not.
fn outside(now: u64, from: u64, until: u64) -> Option<String> {
    if now < from {
        return Some("is not valid yet".to_owned());
    }
    if now >= until {
        return Some("has ended".to_owned());
    }
    let left = until - now;
    // Who renews by itself does so in the last third of its life.
    match nearness(left, until - from)? {
        Nearness::Month => None,
        Nearness::Week | Nearness::Day => Some(match left {
            0..172_800 => format!("ends in {} hours", left / 3600),
            _ => format!("ends in {} days", left / 86_400),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p2p::Certificate;

    const DAY: u64 = 86_400;

    #[test]
    fn a_certificate_that_ends_soon_has_ended_or_has_not_begun_is_named() {
        let status = |valid| CertificateStatus {
            files: Some(Certificate {
                chain: "/etc/byway/cert.pem".into(),
                key: "/etc/byway/key.pem".into(),
            }),
            valid: Some(valid),
            failure: None,
        };
        let begun = 1_000_000;
        let ends = begun + 90 * DAY;
        let said = |now| {
            let found = judge(&status((begun, ends)), now);
            let [one] = found.try_into().ok()?;
            let Problem {
                code,
                severity,
                message,
                help,
            } = one;
            assert_eq!(
                (code.as_str(), severity.as_str()),
                ("E-CERTIFICATE", "warning")
            );
            assert!(help.ends_with("byway reload"), "{help}");
            Some(message)
        };
        assert_eq!(said(begun), None);
        assert_eq!(said(ends - 20 * DAY), None, "it may be renewed by itself");
        for (now, part) in [
            (ends - 6 * DAY, "cert.pem ends in 6 days;"),
            (ends - 7201, "cert.pem ends in 2 hours;"),
            (ends, "cert.pem has ended;"),
            (begun - 1, "cert.pem is not valid yet;"),
        ] {
            assert!(said(now).unwrap().contains(part), "{part}");
        }
        // One that lives for six days is renewed when two are left.
        let short = status((begun, begun + 6 * DAY));
        assert_eq!(judge(&short, begun + 4 * DAY), []);
        assert_eq!(judge(&short, begun + 5 * DAY + 3600).len(), 1);
    }

    #[test]
    fn files_that_could_not_be_used_are_a_problem_whatever_is_shown() {
        let status = CertificateStatus {
            failure: Some("/etc/byway/key.pem: no such file".to_owned()),
            ..CertificateStatus::default()
        };
        let [told] = judge(&status, 0).try_into().unwrap();
        assert!(told.message.ends_with("/etc/byway/key.pem: no such file"));
    }
}
