//! How a registry is spoken to: what every client has to be told of it.

use std::path::Path;

use super::{Change, below, read};

/// Plain HTTP, or TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Without TLS, which clients have to be told is meant.
    Plain,
    /// With TLS.
    Tls {
        /// PEM: who vouches for it, when the clients' systems don't know.
        ca: Option<String>,
    },
}

impl Speaks {
    pub(super) fn is_plain(&self) -> bool {
        *self == Self::Plain
    }

    /// The registry's address with its scheme.
    pub(super) fn url(&self, address: &str) -> String {
        format!("{}://{address}", if self.is_plain() { "http" } else { "https" })
    }

    fn ca(&self) -> Option<&str> {
        match self {
            Self::Tls { ca } => ca.as_deref(),
            Self::Plain => None,
        }
    }

    /// Where the authority's file for a registry is below `folder`, when there has to be one.
    pub(super) fn ca_path(&self, folder: &str, address: &str) -> Option<String> {
        self.ca().map(|_| format!("{folder}/{address}/ca.crt"))
    }

    /// The authority's files for these registries below `folder`, a folder for each.
    pub(super) fn ca_files(&self, root: &Path, folder: &str, addresses: &[String]) -> anyhow::Result<Vec<Change>> {
        let Some(ca) = self.ca() else { return Ok(Vec::new()) };
        let change = |address: &String| {
            let path = below(root, &format!("{folder}/{address}/ca.crt"));
            Ok(Change { before: read(&path)?, after: ca.to_owned(), path })
        };
        addresses.iter().map(change).collect()
    }
}
