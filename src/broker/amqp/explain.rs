//! Why the broker can't be reached, and what to do about it: lapin's errors in the operator's words.

use std::io;

use lapin::ErrorKind;
use lapin::uri::AMQPScheme;
use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::address::Address;

/// Says what went wrong with connecting, and what to do about it.
pub(super) fn explain(address: &Address, error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => {
            let text = refusal.get_message();
            match refusal.kind().get_id() {
                403 => format!("{text}; check user '{}' and the password in broker.url", address.user()),
                530 => format!(
                    "{text}; check the vhost '{}' in broker.url (the default vhost is written %2f) and that user \
                     '{}' has permissions there",
                    address.vhost(),
                    address.user()
                ),
                _ => text.to_string(),
            }
        }
        ErrorKind::IOError(error) => explain_io(address, error),
        ErrorKind::ParsingError(_) => {
            "what answers speaks no AMQP; is the port right, and is it with or without TLS as broker.url says?".to_owned()
        }
        _ => error.to_string(),
    }
}

fn explain_io(address: &Address, error: &io::Error) -> String {
    if let Some(error) = error.get_ref().and_then(|error| error.downcast_ref()) {
        return explain_tls(address, error);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!(
                "connection refused; is the broker running, and is the port in broker.url right? ({error})"
            )
        }
        io::ErrorKind::TimedOut => {
            format!("{} doesn't answer; check the network and firewalls between", address.host())
        }
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
            format!(
                "the connection was closed during the handshake; does the port speak AMQP, and with or without \
                 TLS as broker.url says?{} ({error})",
                who_we_are(address)
            )
        }
        _ => error.to_string(),
    }
}

/// A broker that doesn't like a client's certificate, or the lack of one, says so and hangs up. What it said may be lost.
fn who_we_are(address: &Address) -> String {
    match (&address.uri().scheme, &address.tls().identity) {
        (AMQPScheme::AMQP, _) => String::new(),
        (AMQPScheme::AMQPS, None) => {
            " If it demands a client certificate, set broker.tls.cert and broker.tls.key".to_owned()
        }
        (AMQPScheme::AMQPS, Some(identity)) => {
            format!(
                " Does it trust the issuer of the certificate in '{}' (broker.tls.cert)?",
                identity.cert.display()
            )
        }
    }
}

fn explain_tls(address: &Address, error: &TlsError) -> String {
    let name = address.server_name();
    match error {
        TlsError::InvalidCertificate(wrong) => match wrong {
            // A bad signature is what an authority that was made anew, under the same name, leads to.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => match &address.tls().ca {
                Some(ca) => format!(
                    "TLS: the broker's certificate is from none of the authorities in '{}' (broker.tls.ca); put the \
                     one there that issued it",
                    ca.display()
                ),
                None => "TLS: the broker's certificate is from no authority that this machine trusts; set \
                         broker.tls.ca to a file with the one that issued it"
                    .to_owned(),
            },
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
                "TLS: the broker's certificate isn't for '{name}'{}; correct the host in broker.url, or set \
                 broker.tls.server_name to a name in the certificate",
                presented(wrong)
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "TLS: the broker's certificate has expired; renew it there, or set this machine's clock right"
                    .to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "TLS: the broker's certificate isn't valid yet; set the clocks right".to_owned()
            }
            _ => format!("TLS: the broker's certificate can't be accepted: {error}"),
        },
        // Not even the answer of an AMQP port is.
        TlsError::InvalidMessage(_) => format!(
            "TLS: what answers speaks no TLS; write the port for it (often 5671), or amqp:// for a connection without ({error})"
        ),
        TlsError::AlertReceived(alert) if is_about_us(*alert) => match &address.tls().identity {
            Some(identity) => format!(
                "TLS: the broker doesn't accept the certificate in '{}' (broker.tls.cert): {error}; use one that has \
                 not expired, from an authority that the broker trusts",
                identity.cert.display()
            ),
            None => format!(
                "TLS: the broker demands a client certificate ({error}); set broker.tls.cert and broker.tls.key"
            ),
        },
        _ => format!("TLS failed: {error}"),
    }
}

fn presented(wrong: &CertificateError) -> String {
    match wrong {
        CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
            format!(", but for {}", presented.join(", "))
        }
        _ => String::new(),
    }
}

/// What a server says of a client's certificate, or of its lack.
fn is_about_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::HandshakeFailure
    )
}
