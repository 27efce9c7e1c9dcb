//! The router that the default route of IPv4 leads over.

use std::net::{IpAddr, Ipv4Addr};

use super::{MAIN, Netlink};

impl Netlink {
    /// The gateway of the IPv4 default route that the kernel prefers, of those that have one, and our address on the way to
    /// it. A route into a tunnel has none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(in crate::host) async fn router(&self) -> anyhow::Result<Option<(Ipv4Addr, Ipv4Addr)>> {
        let mut defaults = self.routes(None).await?;
        defaults.retain(|r| r.route.destination.prefix_len() == 0 && !r.ours);
        defaults.sort_by_key(|r| (r.route.table != MAIN, r.metric));
        for default in defaults {
            let Some(IpAddr::V4(gateway)) = default.route.gateway else {
                continue;
            };
            let way = self.way(gateway.into(), None, None).await?;
            let link = default.link;
            // By another link it is not that router.
            let source = way.filter(|way| link.is_none_or(|link| link == way.link));
            if let Some(IpAddr::V4(local)) = source.and_then(|way| way.source) {
                return Ok(Some((gateway, local)));
            }
        }
        Ok(None)
    }
}

/// The gateway of the IPv4 default route that the kernel prefers, and our address on the way to it; none where no default
/// route has one.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn router() -> anyhow::Result<Option<(Ipv4Addr, Ipv4Addr)>> {
    Netlink::open()?.router().await
}
