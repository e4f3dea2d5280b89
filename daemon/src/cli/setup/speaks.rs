//! How a registry is spoken to: what every client has to be told of it.

use std::path::Path;

use super::{Change, below, read};

/// Plain HTTP, or TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Without TLS, which clients have to be told is meant.
    Plain,
    /// With TLS.
    Tls(Proofs),
}

/// What both sides of a TLS connection prove themselves by, beyond what the clients' systems know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Proofs {
    /// PEM: who vouches for the registry.
    pub(super) ca: Option<String>,
    /// What the client shows.
    pub(super) client: Option<Pair>,
}

/// A certificate and its private key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // S42: never the key.
        f.write_str("a certificate and its key")
    }
}

/// The names of the files. Docker, podman and what is built like them take `*.crt` for authorities, and `X.cert` with `X.key` for the client's own.
const CA: &str = "ca.crt";
const CERTIFICATE: &str = "client.cert";
const KEY: &str = "client.key";

/// Where the files for one registry are, as the client's configuration names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Paths {
    pub(super) ca: Option<String>,
    /// The certificate and the key.
    pub(super) client: Option<(String, String)>,
}

impl Speaks {
    /// TLS, for registries that a public authority vouches for and that ask for no certificate.
    #[cfg(test)]
    pub(super) fn public() -> Self {
        Self::Tls(Proofs::default())
    }

    /// TLS, with a private authority.
    #[cfg(test)]
    pub(super) fn private(ca: &str) -> Self {
        Self::Tls(Proofs { ca: Some(ca.to_owned()), client: None })
    }

    /// The same, with a certificate for the client too.
    #[cfg(test)]
    pub(super) fn mutual(ca: &str) -> Self {
        let client = Some(Pair { certificate: "CERTIFICATE".to_owned(), key: "KEY".to_owned() });
        Self::Tls(Proofs { ca: Some(ca.to_owned()), client })
    }

    /// Every form, for whoever has to know what this program may have written: plain, and TLS with each of the proofs or without.
    pub(super) fn forms() -> impl Iterator<Item = Self> {
        let pair = || Pair { certificate: String::new(), key: String::new() };
        let tls = [false, true]
            .into_iter()
            .flat_map(move |ca| [false, true].map(|client| Self::Tls(Proofs { ca: ca.then(String::new), client: client.then(pair) })));
        std::iter::once(Self::Plain).chain(tls)
    }

    pub(super) fn is_plain(&self) -> bool {
        *self == Self::Plain
    }

    /// The registry's address with its scheme.
    pub(super) fn url(&self, address: &str) -> String {
        format!("{}://{address}", if self.is_plain() { "http" } else { "https" })
    }

    fn proofs(&self) -> Option<&Proofs> {
        match self {
            Self::Tls(proofs) => Some(proofs),
            Self::Plain => None,
        }
    }

    /// Where the files for a registry are below `folder`, as far as there have to be some.
    pub(super) fn paths(&self, folder: &str, address: &str) -> Paths {
        let Some(proofs) = self.proofs() else { return Paths::default() };
        let path = |name| format!("{folder}/{address}/{name}");
        Paths { ca: proofs.ca.as_ref().map(|_| path(CA)), client: proofs.client.as_ref().map(|_| (path(CERTIFICATE), path(KEY))) }
    }

    /// The files for these registries below `folder`, a folder for each.
    pub(super) fn files(&self, root: &Path, folder: &str, addresses: &[String]) -> anyhow::Result<Vec<Change>> {
        let Some(proofs) = self.proofs() else { return Ok(Vec::new()) };
        let authority = proofs.ca.iter().map(|ca| (CA, ca, false));
        let own = proofs.client.iter().flat_map(|pair| [(CERTIFICATE, &pair.certificate, false), (KEY, &pair.key, true)]);
        let files: Vec<_> = authority.chain(own).collect();
        let change = |address: &String, (name, text, is_secret): (&str, &String, bool)| {
            let path = below(root, &format!("{folder}/{address}/{name}"));
            Ok(Change { before: read(&path)?, after: text.clone(), path, is_secret })
        };
        addresses.iter().flat_map(|address| files.iter().map(move |file| change(address, *file))).collect()
    }
}
