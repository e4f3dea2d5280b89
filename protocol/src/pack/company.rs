//! Whom the writer of a pack or checkpoint stands with. A reader of a bucket that knows one member learns from it who the others are, and so whose
//! signature counts there.
//!
//! ```text
//! "founder":"<node id>","members":["<node id>",..],"expelled":["<node id>",..]
//! ```
//!
//! These stand in the first line of a pack's records and of a checkpoint's directory, which are signed; each is left out where there is nothing to say.

use serde::{Deserialize, Serialize};

use crate::stamp::NodeId;

use super::InvalidLine;

/// Whom a writer knew when it wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Company {
    /// Whom the bucket's `cluster` object named when the writer looked at it.
    pub founder: Option<NodeId>,
    /// The members.
    pub members: Vec<NodeId>,
    /// Those who were members once, and may not come back.
    pub expelled: Vec<NodeId>,
}

/// The same as fields of a line.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct CompanyLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    founder: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    members: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    expelled: Vec<String>,
}

impl From<&Company> for CompanyLine {
    fn from(company: &Company) -> Self {
        let letters = |nodes: &[NodeId]| nodes.iter().map(NodeId::letters).collect();
        Self {
            founder: company.founder.as_ref().map(NodeId::letters),
            members: letters(&company.members),
            expelled: letters(&company.expelled),
        }
    }
}

impl CompanyLine {
    pub(crate) fn parse(self) -> Result<Company, InvalidLine> {
        let node = |text: &String, field| NodeId::parse(text).ok_or(InvalidLine::Field { field });
        let nodes = |texts: &[String], field| texts.iter().map(|text| node(text, field)).collect::<Result<Vec<_>, _>>();
        Ok(Company {
            founder: self.founder.as_ref().map(|text| node(text, "founder")).transpose()?,
            members: nodes(&self.members, "members")?,
            expelled: nodes(&self.expelled, "expelled")?,
        })
    }
}
