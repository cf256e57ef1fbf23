from n2s_utils import cli
from n2s_utils.report import pages

cli.run(pages.main)
