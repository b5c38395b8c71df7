//! Which names a certificate is for.

use std::net::IpAddr;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use towline_tunnel::{
    carrier::dial::RelayAddress,
    fault::{Fault, Report},
};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::TlsSource;

impl TlsSource {
    /// Whether peers that dial `public` will take the certificate for the relay's, where that can be known: the names of one that
    /// the relay makes for itself.
    ///
    /// # Errors
    /// If they won't, or no certificate can be made for the names.
    pub fn check(&self, public: &RelayAddress) -> Result<(), Report> {
        let Self::SelfSigned { names, .. } = self else { return Ok(()) };
        let wrong = |error: rcgen::Error| {
            Report::new(Fault::ConfigInvalid, format!("no certificate for {}: {error}", names.join(", ")))
        };
        let (params, key) = (CertificateParams::new(names.clone()).map_err(wrong)?, KeyPair::generate());
        let likely = key.and_then(|key| params.self_signed(&key)).map_err(wrong)?;
        if covers(likely.der(), public.host()) {
            return Ok(());
        }
        let (names, host) = (names.join(", "), public.host());
        Err(Report::new(
            Fault::ConfigInvalid,
            format!(
                "--tls-self-signed {names} does not cover {host}, which agents and clients are told to dial: \
                 add --tls-self-signed {host}, or give --public-url with a name that it covers"
            ),
        ))
    }
}

/// Whether a peer that dials this host takes the certificate for the host's (RFC 6125).
pub(super) fn covers(leaf: &CertificateDer<'_>, host: &str) -> bool {
    let (Ok(leaf), Ok(name)) = (EndEntityCert::try_from(leaf), ServerName::try_from(host)) else {
        return false;
    };
    leaf.verify_is_valid_for_subject_name(&name).is_ok()
}

/// The DNS names and IP addresses that the certificate is for.
pub(super) fn of(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(names: &[&str]) -> TlsSource {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        TlsSource::SelfSigned { names, data_dir: "/nowhere".into() }
    }

    #[test]
    fn a_certificate_for_other_names_than_peers_dial_is_refused_with_what_to_give() {
        let names = ["relay.test", "*.example.com", "192.0.2.1", "2001:db8::1"];
        for good in
            ["relay.test", "https://RELAY.test:8443", "a.example.com", "192.0.2.1:443", "[2001:db8::1]"]
        {
            source(&names).check(&RelayAddress::parse(good).unwrap()).unwrap();
        }
        for (bad, host) in
            [("https://other.test", "other.test"), ("192.0.2.2", "192.0.2.2"), ("a.b.example.com", "a.b")]
        {
            let said = source(&names).check(&RelayAddress::parse(bad).unwrap()).unwrap_err().to_string();
            assert!(
                said.contains(&format!("add --tls-self-signed {host}")) && said.contains("*.example"),
                "{said}"
            );
        }
        let files = TlsSource::Files { certificate: "c".into(), key: "k".into() };
        files.check(&RelayAddress::parse("other.test").unwrap()).unwrap();
    }

    #[test]
    fn the_names_of_a_certificate_are_told_as_people_write_them() {
        let names = ["relay.test", "192.0.2.1", "2001:db8::1"].map(str::to_owned);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(names.to_vec()).unwrap().self_signed(&key).unwrap();
        assert_eq!(of(leaf.der()), names);
    }
}
