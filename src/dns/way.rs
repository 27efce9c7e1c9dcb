//! How a resolver outside is reached: on the link its address names, and from the namespace it is asked from.
//!
//! Hickory knows servers by address and port and makes its sockets where it runs. Here an address that needs a link
//! (`fe80::1%eth0`) is written as one number, the link's index in the bits that are zero in it (as in the BSDs), and read
//! again where a socket is used. And where a server answers only in a workload's namespace, as the one inside a container
//! does, the socket is made there: it stays in the namespace it was made in, whoever uses it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioTime};
use nix::sys::socket::{AddressFamily, SockType, SockaddrStorage};
use tokio::io::ReadBuf;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::model::host::NetnsRef;

/// Makes a socket that is neither bound nor connected, and does not block, in a namespace.
pub type Door = Arc<
    dyn Fn(NetnsRef, AddressFamily, SockType) -> BoxFuture<'static, io::Result<OwnedFd>>
        + Send
        + Sync,
>;

/// How long a server may take to be connected to.
const CONNECT: Duration = Duration::from_secs(2);

/// Where sockets are made.
#[derive(Clone, Default)]
pub(super) struct Way {
    tasks: TokioHandle,
    /// Another namespace than the daemon's, and the door into it.
    netns: Option<(NetnsRef, Door)>,
}

impl Way {
    /// Makes the way whose sockets are made within `netns`.
    pub(super) fn within(netns: NetnsRef, door: Door) -> Way {
        Way {
            tasks: TokioHandle::default(),
            netns: Some((netns, door)),
        }
    }

    /// A socket for `server`, bound to `local`, in the namespace; none where that is the daemon's own.
    async fn socket(
        &self,
        kind: SockType,
        server: SocketAddr,
        local: Option<SocketAddr>,
    ) -> io::Result<Option<OwnedFd>> {
        let Some((netns, door)) = &self.netns else {
            return Ok(None);
        };
        let family = if server.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let socket = door(netns.clone(), family, kind).await?;
        if let Some(local) = local {
            nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
        }
        Ok(Some(socket))
    }
}

impl RuntimeProvider for Way {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Datagrams;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.tasks.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let way = self.clone();
        Box::pin(async move {
            let connect = async {
                let socket = match way.socket(SockType::Stream, server, bind).await? {
                    Some(made) => TcpSocket::from_std_stream(made.into()),
                    None => {
                        let socket = if server.is_ipv4() {
                            TcpSocket::new_v4()
                        } else {
                            TcpSocket::new_v6()
                        }?;
                        bind.map_or(Ok(()), |bind| socket.bind(bind))?;
                        socket
                    }
                };
                socket.set_nodelay(true)?;
                socket.connect(unpacked(server)).await
            };
            let stream = tokio::time::timeout(limit.unwrap_or(CONNECT), connect).await?;
            stream.map(AsyncIoTokioAsStd)
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let way = self.clone();
        Box::pin(async move {
            Ok(Datagrams(
                match way.socket(SockType::Datagram, server, Some(local)).await? {
                    Some(made) => UdpSocket::from_std(made.into())?,
                    None => UdpSocket::bind(local).await?,
                },
            ))
        })
    }
}

/// A UDP socket that knows servers by their [packed] address.
pub(super) struct Datagrams(UdpSocket);

impl DnsUdpSocket for Datagrams {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buf = ReadBuf::new(buf);
        self.0.poll_recv_from(cx, &mut buf).map_ok(|from| {
            (
                buf.filled().len(),
                SocketAddr::new(packed(from), from.port()),
            )
        })
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.0.poll_send_to(cx, buf, unpacked(target))
    }
}

/// An address with the link it is on, as one number.
pub(super) fn packed(server: SocketAddr) -> IpAddr {
    match server {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            let [prefix, _, _, rest @ ..] = v6.ip().segments();
            let [high, low] = [v6.scope_id() >> 16, v6.scope_id() & 0xffff]
                .map(|half| u16::try_from(half).unwrap_or(0));
            let [a, b, c, d, e] = rest;
            IpAddr::V6(Ipv6Addr::new(prefix, high, low, a, b, c, d, e))
        }
        other => other.ip(),
    }
}

/// The address that [`packed`] wrote as one number.
fn unpacked(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            let [prefix, high, low, a, b, c, d, e] = v6.ip().segments();
            let scope = (u32::from(high) << 16) | u32::from(low);
            SocketAddrV6::new(
                Ipv6Addr::new(prefix, 0, 0, a, b, c, d, e),
                v6.port(),
                0,
                scope,
            )
            .into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_link() {
        for (ip, scope) in [
            ("fe80::1", 3),
            ("fe80::1", 0),
            ("fe80::dead:beef", 0x0012_3456),
            ("2001:db8::1", 0),
        ] {
            let server: SocketAddr = SocketAddrV6::new(ip.parse().unwrap(), 53, 0, scope).into();
            assert_eq!(unpacked(SocketAddr::new(packed(server), 53)), server);
        }
        let v4: SocketAddr = "192.0.2.1:53".parse().unwrap();
        assert_eq!((packed(v4), unpacked(v4)), (v4.ip(), v4));
    }
}
