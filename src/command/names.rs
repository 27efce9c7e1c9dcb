//! Names: registered, and asked as a workload would ask for them.

use super::kernel::recorded;
use super::{Commands, attach};
use crate::api::types::{DnsInfo, Error, ErrorKind, Response};
use crate::dns::Outcome;
use crate::model::error::Code;
use crate::model::members::printable;
use crate::model::zone::RecordData;
use crate::node::Claim;

/// `dns add`, once no workload that is gone has the name.
pub(super) async fn add(
    ctx: &Commands,
    subnet: String,
    name: String,
    data: Vec<RecordData>,
    ttl: u32,
) -> Result<Response, Error> {
    let wanted = Claim {
        name: name.clone(),
        ip: None,
        netns: None,
        interface: None,
    };
    attach::bury(ctx, &subnet, wanted).await?;
    recorded(ctx, ctx.node.dns_add(subnet, name, data, ttl)).await
}

pub(super) async fn query(ctx: &Commands, name: &str, kind: &str) -> Result<Response, Error> {
    let view = ctx.node.view().load_full();
    let answer = ctx
        .dns
        .query(&view, name, kind)
        .await
        .map_err(|e| Error::new(ErrorKind::Usage, Code::Query, e.to_string()))?;
    let shown = printable(name);
    match answer.outcome {
        Outcome::Exists => {
            let source = if answer.authoritative {
                "zone"
            } else {
                "upstream"
            };
            let record = |r: crate::dns::Found| DnsInfo {
                name: r.name,
                r#type: r.kind,
                value: r.value,
                ttl: r.ttl,
                source: source.into(),
            };
            Ok(Response::Dns {
                records: answer.records.into_iter().map(record).collect(),
            })
        }
        Outcome::NoSuchName => Err(Error::new(
            ErrorKind::NotFound,
            Code::Nxdomain,
            format!("there is no name {shown}"),
        )),
        Outcome::Refused => Err(Error::new(
            ErrorKind::Failed,
            Code::DnsRefused,
            format!("{shown} {kind} is not answered"),
        )),
        Outcome::Failed => Err(Error::new(
            ErrorKind::Failed,
            Code::DnsFailed,
            format!("the host's resolvers did not answer for {shown}"),
        )
        .hint("cat /etc/resolv.conf")),
    }
}
