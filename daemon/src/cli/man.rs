//! `larder man`: the manual pages, one for each command.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_mangen::Man as Page;

/// Write the manual pages.
///
/// Into a folder, one file for each command (larder.1, larder-serve.1, ...), or one after another to standard output.
#[derive(Args, Debug)]
pub(super) struct Man {
    /// The folder; it is made when it is not there
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut command = super::Cli::command();
        command.build();
        let Some(dir) = self.dir else {
            return pages(&command).into_iter().try_for_each(|page| Ok(page.render(out)?));
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("make the folder {}", dir.display()))?;
        for page in pages(&command) {
            let path = dir.join(page.get_filename());
            let mut text = Vec::new();
            page.render(&mut text)?;
            std::fs::write(&path, text).with_context(|| format!("write the manual page {}", path.display()))?;
        }
        Ok(())
    }
}

/// A command's page, and those of the commands below it.
fn pages(command: &clap::Command) -> Vec<Page> {
    let mut pages = vec![Page::new(command.clone())];
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages.extend(self::pages(below));
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().expect("a temp folder");
        let dir = folder.path().join("man1");
        Man { dir: Some(dir.clone()) }.run(&mut Vec::new()).expect("write the pages");
        for name in ["larder.1", "larder-serve.1", "larder-archive.1", "larder-archive-status.1", "larder-peers-remove.1", "larder-setup.1"]
        {
            let page = std::fs::read_to_string(dir.join(name)).expect(name);
            assert!(page.contains(".TH"), "{name}");
        }
        let mut text = Vec::new();
        Man { dir: None }.run(&mut text).expect("memory");
        assert!(String::from_utf8_lossy(&text).contains(".TH larder-restore 1"));
    }
}
