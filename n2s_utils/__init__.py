"""Noise2Score: learn the score of noisy images, denoise with Tweedie's formula (Kim & Ye, NeurIPS 2021).

The rooms, each importing only from those above it:
    cli, files      one-line errors, progress lines; atomic writes, hashes
    noise           Gaussian, Poisson, Gamma: sampling and posterior means
    unet            the score network
    objectives      AR-DAE and its antithetic form
    datasets        image sets, fixed training noise, crops
    weights         trained networks as safetensors with their record
    training        one loop for every objective
    evaluation      whole-image denoising, PSNR and SSIM, result rows
    figures         pictures for the notebooks
    tables          the PSNR tables of notebook 05 and the README
    studies         short runs trained and measured, a row each (notebooks 06, 07)
    bench           speed on this machine
    download        fetch and verify the sets (needs pooch)
    report          execute the notebooks (needs papermill and nbconvert)
"""
