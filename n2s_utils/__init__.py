"""Noise2Score: learn the score of noisy images, denoise with Tweedie's formula (Kim & Ye, NeurIPS 2021).

The rooms of the method, each importing only from those above it:
    cli, files      one-line errors, progress lines; atomic writes, hashes
    machine         device, precision and their names
    noise_model     what the noise models share
    noise           the noise models: sampling, coordinate, posterior mean
    mixture         noise that differs from picture to picture
    recorruption    two noisy pictures from one
    unet            the U-Net
    network         the score network: any U-Net, preconditioned for every noise
    objectives      AR-DAE and its antithetic form, GR2R, the twins
    datasets        image sets, fixed training noise, crops
    feed            what feeds a training
    optimisation    learning rate, Adam, EMA
    config          the configuration of a training, in tables
    weights         trained networks as safetensors with their record
    checkpoint      what is saved of a run
    parallel        one run on several processes
    training        one loop for every objective
    denoiser        weights and noise make a denoiser
    clipping        the mean of noise that a file has clipped, and the way back
    estimation      the noise of one noisy picture
    photo           a file of the user's own: what it holds, and the way back
    batch           many pictures, each by itself
    evaluation      PSNR and SSIM, result rows; n2s evaluate
    denoising       pictures of the user's own; n2s denoise
    own_training    noisy pictures of the user's own; n2s train

__main__ is the command n2s, which calls the mains of these and of the report.

And in report, which the method does not need:
    figures         figures and tables for the notebooks
    tables          the PSNR tables of notebook 05 and the README
    variants        other coordinates and shares of the noise (notebooks 08 and 09)
    estimators      other estimators of the noise (notebook 09)
    two_steps       a network after Tweedie's formula (notebook 10)
    faults          the earlier reproduction's faults and its way of measuring (notebook 07)
    readme          the README's tables, and the numbers of its prose
    studies         short runs trained and measured, a row each (notebooks 06 to 10)
    own_folder      what training on a folder of one's own wins (notebook 11)
    bench           speed on this machine
    download        fetch and verify the sets (needs pooch)
    layout          a notebook as a web page (needs nbconvert)
    pages           execute the notebooks into web pages (needs papermill)
"""
