from segmenter_tester import BaseSegmenterTester


class TestDeepLabV3(BaseSegmenterTester):
    architecture = "deeplabv3"
    decoder_channels = 32
