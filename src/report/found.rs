//! What `status` says of what stands in the way although the kernel matches.

use super::Report;
use crate::api::types::Problem;
use crate::model::error::Code;
use crate::model::host::{Beginner, Finding, Namespace, PRIORITY};
use crate::model::id::{PeerId, SubnetId};
use crate::model::routes::Owner;
use crate::model::view::View;

/// Every finding of the last look, with what to do about it. `name` says what people call a member.
pub(crate) fn problems(ctx: &Report, name: impl Fn(PeerId) -> String) -> Vec<Problem> {
    let view = ctx.node.view().load_full();
    ctx.applied
        .borrow()
        .findings
        .iter()
        .map(|found| problem(found, &view, &name))
        .collect()
}

/// What a workload does in its own namespace is no fault of this machine.
fn problem(found: &Finding, view: &View, name: &impl Fn(PeerId) -> String) -> Problem {
    let mut message = found.to_string();
    let subnet = |id: &SubnetId| {
        view.subnets
            .get(id)
            .map_or_else(|| id.to_string(), |s| s.name.to_string())
    };
    let (code, severity, help) = match found {
        Finding::Outranked { ns, priority, .. } => (
            Code::RuleOrder,
            if *ns == Namespace::Host {
                "error"
            } else {
                "info"
            },
            format!("stop what adds rule {priority}, or let it use a priority above {PRIORITY}"),
        ),
        Finding::Overlap {
            subnet: of, link, ..
        } => {
            let help = format!("give {link} another prefix, or: byway leave {}", subnet(of));
            (Code::CidrOverlap, "warning", help)
        }
        Finding::Crowded { who, excess } => {
            let unwanted = match who {
                Beginner::Lease { subnet: of, net } => {
                    let owner = view
                        .subnets
                        .get(of)
                        .and_then(|s| s.routes.lookup(net.addr()));
                    let member = match owner {
                        Some(Owner::Member(peer)) => name(peer),
                        _ => net.to_string(),
                    };
                    message = format!("member {member} of subnet {} {excess}", subnet(of));
                    format!(
                        "conntrack -D -s {net} ends them; if it is unwanted: byway member remove {} {member}",
                        subnet(of)
                    )
                }
                Beginner::Workload {
                    subnet: of, name, ..
                } => {
                    message = format!("workload {name} in subnet {} {excess}", subnet(of));
                    format!("stop what opens them in {name}, or: byway detach {name}")
                }
            };
            let more = "where they are wanted, a machine holds more with sysctl -w net.netfilter.nf_conntrack_max=NUMBER";
            (Code::Connections, "warning", format!("{unwanted}; {more}"))
        }
    };
    Problem {
        code: code.into(),
        severity: severity.into(),
        message,
        help,
    }
}
