//! TLS around a WebSocket. It hides nothing that Noise inside does not hide, and proves nothing: it is what a firewall or a
//! proxy expects at port 443.
//!
//! A client takes any certificate whose handshake is signed with its key. A server shows what [`Shown`] says.

use std::sync::Arc;

use futures_rustls::TlsConnector;
use futures_rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
    verify_tls13_signature,
};
use futures_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate::Shown;
use crate::p2p::Certificate;

/// What is spoken inside: WebSockets begin as HTTP/1.1.
pub(super) const ALPN: &[u8] = b"http/1.1";

/// Both ends of TLS, as this node uses them.
#[derive(Clone)]
pub(in crate::p2p) struct Tls {
    pub(super) client: TlsConnector,
    /// Shows nothing where nothing is listened on that needs it.
    pub(super) server: Shown,
}

impl Tls {
    /// # Errors
    /// The certificate or its key cannot be used; the file and why.
    pub(super) fn new(certificate: Option<&Certificate>, serves: bool) -> Result<Tls, String> {
        let server = if serves {
            Shown::new(certificate)?
        } else {
            Shown::default()
        };
        Ok(Tls {
            client: client(&provider()).map_err(|e| e.to_string())?.into(),
            server,
        })
    }
}

/// The cryptography of both ends.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn client(provider: &Arc<CryptoProvider>) -> Result<Arc<ClientConfig>, Error> {
    let verifier = AnyCertificate(provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Takes every certificate, and checks that the handshake is signed with its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
