//! From a handshake to an authenticated peer and its streams.

use std::time::Duration;

use futures::FutureExt;
use libp2p::PeerId;
use quinn::rustls::pki_types::CertificateDer;

use super::super::admission::Place;
use super::Error;
use super::connection::Muxer;

/// Waits for the handshake, learns who is there, and only then hands the connection up.
///
/// `place` is held until then. Dropping the future closes the connection.
///
/// # Errors
/// [`Error::Slow`] after `patience`, [`Error::Crowded`] when the place went to another; otherwise what ended the handshake.
pub(super) async fn establish(
    connecting: quinn::Connecting,
    place: Option<Place>,
    patience: Duration,
) -> Result<(PeerId, Muxer), Error> {
    let established = async {
        let connection = connecting.await?;
        let peer = authenticate(&connection).await?;
        Ok((peer, Muxer::new(connection)))
    };
    let established =
        tokio::time::timeout(patience, established).map(|done| done.unwrap_or(Err(Error::Slow)));
    match place {
        None => established.await,
        Some(place) => place.hold(established).await.unwrap_or(Err(Error::Crowded)),
    }
}

/// Who is at the other end, by all that it has to prove before any protocol is spoken.
///
/// Today that is the TLS handshake, whose verifier has checked that the certificate is signed by the host key it names.
/// No stream has been opened or accepted when this runs, and none is until it returns: a proof that the peer belongs to
/// a private swarm is a further step here, on a stream of its own (the dialler opens it) bound to the handshake by
/// [`quinn::Connection::export_keying_material`]; its failure is an error of the connection, and its time counts
/// against the patience of [`establish`].
///
/// # Errors
/// [`Error::Identity`] without a certificate of libp2p's kind.
async fn authenticate(connection: &quinn::Connection) -> Result<PeerId, Error> {
    let shown = connection.peer_identity().ok_or(Error::Identity)?;
    let chain = shown
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| Error::Identity)?;
    let own = chain.first().ok_or(Error::Identity)?;
    let certificate = libp2p_tls::certificate::parse(own).map_err(|_| Error::Identity)?;
    Ok(certificate.peer_id())
}
