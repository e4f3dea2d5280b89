//! `larder check-config`: mistakes are found before a restart does.

use std::io::Write;

use clap::Args;

use super::Context;
use crate::config::Flags;

/// Check the configuration without starting anything.
///
/// Reads the file and the environment as `larder serve` would. A mistake is told with its place, and the exit code is 2.
#[derive(Args, Debug)]
pub(super) struct CheckConfig {}

impl CheckConfig {
    pub(super) fn run(self, context: &Context, out: &mut dyn Write) -> anyhow::Result<()> {
        context.config(&Flags { data_dir: context.place.data_dir.clone(), ..Flags::default() })?;
        let variable = context.environment.iter().find(|(name, value)| name == "LARDER_CONFIG" && !value.is_empty());
        let file = context.place.config.clone().or(variable.map(|(_, value)| value.into()));
        match file {
            Some(file) => writeln!(out, "{}: ok", file.display())?,
            None => writeln!(out, "no configuration file, defaults and environment: ok")?,
        }
        Ok(())
    }
}
