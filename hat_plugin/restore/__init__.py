"""Images in, images out.

from hat_plugin.restore import Settings, load_network, restore_image

network = load_network('HAT_SRx4.pth')                        # built as the weights show it
large = restore_image(network, photograph)                    # RGB array in, RGB array out, same type
large = restore_image(network, photograph, Settings(tile=256, self_ensemble=True))
"""

from hat_plugin.restore.jobs import plan_jobs
from hat_plugin.restore.network import Network, load_network
from hat_plugin.restore.pipeline import Settings, Summary, restore_files, restore_image

__all__ = ['Network', 'Settings', 'Summary', 'load_network', 'plan_jobs', 'restore_files', 'restore_image']
