//! `larder completions`: what a shell needs to complete commands and flags.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print the completions of a shell.
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<()> {
        // The generator panics when it can't write; memory it can always write to.
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "larder", &mut text);
        Ok(out.write_all(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_gets_the_commands() {
        for shell in Shell::value_variants() {
            let mut text = Vec::new();
            Completions { shell: *shell }.run(&mut text).expect("memory");
            assert!(String::from_utf8_lossy(&text).contains("check-config"), "{shell}");
        }
    }
}
